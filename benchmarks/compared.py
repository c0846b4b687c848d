"""The servers that are compared, in the table's order."""

from collections.abc import Mapping
from typing import Any

from benchmarks.environments import PEERS
from benchmarks.networks import ROOT, SAMPLE, TINYVIT, Network
from benchmarks.payloads import TRITON_HEADER_BYTES, pixels_header
from benchmarks.servers import Server, Workload

INFER = "/v2/models/tinyvit/infer"
JSON, JPEG = {"Content-Type": "application/json"}, {"Content-Type": "image/jpeg"}
HEADER_LENGTH = "Inference-Header-Content-Length"
NUMPY = Workload("NumPy JSON", INFER, "cat.numpy.json", JSON)
BINARY = Workload(
    "NumPy, binary tensor", INFER, "cat.numpy", {HEADER_LENGTH: str(len(pixels_header()))}
)
BASE64 = Workload("JPEG, base64 in JSON", INFER, "cat.base64.json", JSON)
RAW = Workload("JPEG as it is", "/v2/models/tinyvit/classify", "cat.jpg", JPEG)
GRPC = Workload("JPEG, gRPC", "", "cat.jpg")
LARGEST = "12-megapixel JPEG"
PHOTOS = {
    "3-megapixel JPEG": "photo-3mp.jpg",
    LARGEST: "photo-12mp.jpg",
    "1-megapixel PNG": "photo-1mp.png",
}
TRITON = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(TRITON_HEADER_BYTES)}

TORCH, OPENVINO, BFLOAT16 = "torch fp32, eager", "OpenVINO fp32", "OpenVINO bf16"
THIS = "This runtime"


def files(path: str, headers: Mapping[str, str] = JPEG, suffix: str = "") -> tuple[Workload, ...]:
    """Return workloads that send the cat, and larger photographs, as files."""
    cat = Workload(RAW.name, path, RAW.body + suffix, headers)
    photos = (Workload(n, path, b + suffix, headers, turns=2) for n, b in PHOTOS.items())
    return (cat, *photos)


def ours(
    precision: str,
    workloads: tuple[Workload, ...] = (NUMPY, BINARY, BASE64, GRPC, *files(RAW.path)),
    **options: Any,
) -> Server:
    """Return this project's runtime, as shipped unless `options` say otherwise."""
    options = {"name": THIS, "folder": ROOT / "tinyvit", **options}
    variables = {"TINYVIT_PRECISION": precision, **options.pop("variables", {})}
    exact, engine = precision == "fp32", f"OpenVINO {precision}"
    return Server(engine=engine, variables=variables, workloads=workloads, exact=exact, **options)


def peer(name: str, folder: str, path: str, **options: Any) -> Server:
    """Return a peer that computes with the network that this runtime converts."""
    options = {"workloads": files(path), **options}
    script = PEERS / folder / "server.py"
    return Server(name, OPENVINO, script=script, environment=folder, takes_exported=True, **options)


STRAIGHTFORWARD = Server(
    "Straightforward MLServer runtime",
    TORCH,
    (NUMPY,),
    folder=ROOT / "lab" / "2-top-5",  # the first of the lab that returns labels, as all others do
    from_hub=True,
)
FASTAPI_TORCH = Server(
    "FastAPI",
    TORCH,
    (Workload(RAW.name, "/classify", RAW.body, JPEG),),
    script=PEERS / "fastapi-torch" / "server.py",
    ready="/health",
)
FASTAPI = peer("FastAPI, thread pool", "fastapi-openvino", "/classify", ready="/health")
LITSERVE = peer("LitServe", "litserve-openvino", "/predict", ready="/health")
MOSEC = peer("mosec", "mosec-openvino", "/inference", ready="")
TRITON_SERVER = peer(
    "Triton 2.51, Python backend",
    "triton-openvino",
    "",
    workloads=files("/v2/models/classifier/infer", TRITON, ".triton"),
    ready="/v2/models/classifier/ready",
)
SAME_ENGINE = (FASTAPI, LITSERVE, MOSEC, TRITON_SERVER)
FP32, BF16 = ours("fp32"), ours("bf16", files(RAW.path))

COMPARED: list[tuple[Network, Server]] = [
    *((TINYVIT, s) for s in (STRAIGHTFORWARD, FASTAPI_TORCH, *SAME_ENGINE, FP32, BF16)),
    *((SAMPLE, s) for s in (STRAIGHTFORWARD, *SAME_ENGINE, FP32, BF16)),
]
