"""The servers that are compared, in the table's order."""

import sysconfig
from typing import Any

import environments
from inputs import ROOT, SAMPLE, TINYVIT, Network, pixels_header, triton_header
from servers import Server, Way

PEERS = environments.PEERS
HUGGINGFACE = ROOT / ".venv-huggingface"

INFER = "/v2/models/tinyvit/infer"
JSON, JPEG = {"Content-Type": "application/json"}, {"Content-Type": "image/jpeg"}
NUMPY = Way("NumPy JSON", INFER, "cat.numpy.json", JSON)
BINARY = Way(
    "NumPy, binary tensor",
    INFER,
    "cat.numpy",
    {"Inference-Header-Content-Length": str(len(pixels_header()))},
)
BASE64 = Way("JPEG, base64 in JSON", INFER, "cat.base64.json", JSON)
RAW = Way("JPEG as it is", "/v2/models/tinyvit/classify", "cat.jpg", JPEG)
GRPC = Way("JPEG, gRPC", "", "cat.jpg")
BIG = Way("12-megapixel JPEG", RAW.path, "big.jpg", JPEG)
TRITON = {
    "Content-Type": "application/octet-stream",
    "Inference-Header-Content-Length": str(len(triton_header())),
}

TORCH, OPENVINO, BFLOAT16 = "torch fp32, eager", "OpenVINO fp32", "OpenVINO bf16"
THIS = "This runtime"


def ours(
    precision: str, ways: tuple[Way, ...] = (NUMPY, BINARY, BASE64, RAW, GRPC), **options: Any
) -> Server:
    """This project's runtime, as shipped unless `options` say otherwise."""
    options = {"name": THIS, "folder": ROOT / "tinyvit", **options}
    variables = {"TINYVIT_PRECISION": precision, **options.pop("variables", {})}
    engine = f"OpenVINO {precision}"
    return Server(
        engine=engine, variables=variables, ways=ways, exact=precision == "fp32", **options
    )


def peer(name: str, folder: str, path: str, **options: Any) -> Server:
    """A peer on the network that this runtime converted, a picture as it is."""
    options = {"ways": (Way(RAW.name, path, RAW.body, JPEG),), **options}
    script = PEERS / folder / "server.py"
    return Server(name, OPENVINO, script=script, environment=folder, takes_exported=True, **options)


STRAIGHTFORWARD = Server(
    "Straightforward MLServer runtime",
    TORCH,
    (NUMPY,),
    folder=ROOT / "lab" / "2-top-5",  # the first that answers labels, as all others do
    from_hub=True,
)
FASTAPI_TORCH = Server(
    "FastAPI",
    TORCH,
    (Way(RAW.name, "/classify", RAW.body, JPEG),),
    script=PEERS / "fastapi-torch" / "server.py",
    ready="/health",
)
LITSERVE_TORCH = Server(
    "LitServe",
    TORCH,
    (Way(BASE64.name, "/predict", "cat.litserve.json", JSON),),
    script=PEERS / "litserve-torch" / "server.py",
    environment="litserve-openvino",
    # torch and timm, 5 GB, are the same for both: it finds those of this environment.
    variables={"TORCH_PACKAGES": sysconfig.get_path("purelib")},
    ready="/health",
)
HF = Server(
    "MLServer's Hugging Face runtime",
    TORCH,
    (Way(BASE64.name, "/v2/models/huggingface/infer", "cat.huggingface.json", JSON),),
    folder=ROOT / "huggingface",
    interpreter=HUGGINGFACE / "bin" / "python",
    ready="/v2/models/huggingface/ready",
    exact=False,
)
FASTAPI = peer("FastAPI, thread pool", "fastapi-openvino", "/classify", ready="/health")
LITSERVE = peer("LitServe", "litserve-openvino", "/predict", ready="/health")
MOSEC = peer("mosec", "mosec-openvino", "/inference", ready="")
TRITON_SERVER = peer(
    "Triton 2.51, Python backend",
    "triton-openvino",
    "",
    ways=(Way(RAW.name, "/v2/models/classifier/infer", "cat.triton", TRITON),),
    ready="/v2/models/classifier/ready",
)
SAME_ENGINE = (FASTAPI, LITSERVE, MOSEC, TRITON_SERVER)
FP32, BF16 = ours("fp32"), ours("bf16")
SAMPLE_FP32, SAMPLE_BF16 = ours("fp32", (BINARY, BASE64, RAW, GRPC)), ours("bf16", (RAW,))


def compared() -> list[tuple[Network, Server]]:
    """Which servers are measured on which network."""
    with_torch = [STRAIGHTFORWARD, FASTAPI_TORCH, LITSERVE_TORCH]
    with_torch += [HF] if HF.interpreter and HF.interpreter.exists() else []
    return [
        *((TINYVIT, server) for server in (*with_torch, *SAME_ENGINE, FP32, BF16)),
        *((SAMPLE, s) for s in (STRAIGHTFORWARD, *SAME_ENGINE, SAMPLE_FP32, SAMPLE_BF16)),
    ]
