"""Requests of the tests, and helpers for their responses."""

import base64
import contextlib
import functools
import io
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import requests
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from client.local import LocalServer
from tests.support.app import App
from tests.support.paths import ROOT
from tests.support.processes import is_running, stat_fields

Server = LocalServer | App

COFFEE = ROOT / "imgs" / "coffee.jpg"
CAT = COFFEE.with_name("cat.jpg")
LABEL = "espresso"
"""The sample checkpoint's label of COFFEE."""

CLASSES = 1000
"""Number of classes of the sample checkpoint."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

PYTHON = re.compile(
    r"\b(mlserver|Traceback|PIL|numpy|pydantic|Error:|[A-Z]\w+(Error|Exception)\b|NoneType"
    r"|dictionary|object at 0x|<class)|\.py\b"
)
"""Words that would show the implementation to a client."""


def image_file(
    kind: str, size: tuple[int, int] = (80, 60), mode: str = "RGB", **save: Any
) -> bytes:
    """Return an image file of noise, the same for the same arguments."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8)
    return encoded(Image.fromarray(noise).resize(size).convert(mode), kind, **save)


def encoded(image: Image.Image, kind: str = "PNG", **save: Any) -> bytes:
    """Return the file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **save)
    return buffer.getvalue()


def text(data: bytes) -> str:
    """Return base64, the form of BYTES in JSON."""
    return base64.b64encode(data).decode()


def tensor(data: Any, shape: Any = None, datatype: str = "BYTES", **more: Any) -> dict[str, Any]:
    """Return an input `payload`, by default one file."""
    if isinstance(data, bytes):
        data = [text(data)]
    shape = [len(data)] if shape is None else shape
    return {"name": "payload", "shape": shape, "datatype": datatype, "data": data} | more


def body(*inputs: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs), **more}


def request(server: Server, method: str, path: str, timeout: float = 60, **options: Any) -> Any:
    """Send a request with the options of `requests.request`, and return the response."""
    if isinstance(server, LocalServer):
        return requests.request(method, server.url + path, timeout=timeout, **options)
    return server.request(method, path, timeout=timeout, **options)


def infer(server: Server, request_body: Any, model: str = "tinyvit", **options: Any) -> Any:
    """Send a JSON body, or bytes as they are; `model` may be `tinyvit/versions/2`."""
    content = {"data" if isinstance(request_body, bytes) else "json": request_body}
    return request(server, "POST", f"/v2/models/{model}/infer", **content, **options)


def classify(server: Server, image: bytes, model: str = "tinyvit", **options: Any) -> Any:
    """Send an image file as the body."""
    return request(server, "POST", f"/v2/models/{model}/classify", data=image, **options)


def labels(response: Any) -> list[str]:
    """Return the labels of a response to infer or classify."""
    assert response.status_code == 200, response.text
    content = response.json()
    return content["outputs"][0]["data"] if "outputs" in content else [e["label"] for e in content]


def repository(server: LocalServer, what: str, model: str = "tinyvit") -> requests.Response:
    """`load` or `unload` by the repository API."""
    url = f"{server.url}/v2/repository/models/{model}/{what}"
    return requests.post(url, timeout=120)


def stub(server: Server) -> GRPCInferenceServiceStub:
    """Return a gRPC client; its channel is kept for later calls."""
    return _stub(server.grpc)


@functools.cache
def _stub(address: str) -> GRPCInferenceServiceStub:
    options = [("grpc.max_send_message_length", 128 * 2**20)]
    return GRPCInferenceServiceStub(grpc.insecure_channel(address, options=options))


def parameters(**values: Any) -> dict[str, pb.InferParameter]:
    fields = {bool: "bool_param", int: "int64_param", str: "string_param"}
    return {k: pb.InferParameter(**{fields[type(v)]: v}) for k, v in values.items()}


def message(
    shape: list[int] | None = None,
    datatype: str = "BYTES",
    name: str = "payload",
    raw: list[bytes] | None = None,
    count: int = 1,
    outputs: tuple[str, ...] = (),
    identifier: str = "",
    params: dict[str, Any] | None = None,
    tensor_parameters: dict[str, Any] | None = None,
    model: str = "tinyvit",
    **contents: Any,
) -> pb.ModelInferRequest:
    """Return a gRPC request with `count` equal inputs; `contents` as in InferTensorContents."""
    one = pb.ModelInferRequest.InferInputTensor(
        name=name,
        shape=[1] if shape is None else shape,
        datatype=datatype,
        contents=pb.InferTensorContents(**contents) if contents else None,
        parameters=parameters(**(tensor_parameters or {})),
    )
    return pb.ModelInferRequest(
        model_name=model,
        id=identifier,
        inputs=[one] * count,
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=o) for o in outputs],
        parameters=parameters(**(params or {})),
        raw_input_contents=raw or [],
    )


def until(condition: Callable[[], Any], within: float = 30) -> Any:
    """Return the first true value of a condition, or fail after `within` seconds; network errors
    count as false."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            if value := condition():
                return value
        time.sleep(0.02)
    raise AssertionError(f"not within {within} s")


def measured(server: LocalServer) -> dict[str, float]:
    """Return each tinyvit sample of the metrics, summed over its labels, without buckets."""
    return totals(requests.get(server.metrics, timeout=10).text)


def totals(metrics: str) -> dict[str, float]:
    """Return each tinyvit sample of a metrics page, summed over its labels, without buckets."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name.startswith("tinyvit_") and not sample.name.endswith("_bucket"):
                sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return sums


def assert_sane(server: Server) -> None:
    """Assert that both routes answer with the right label."""
    image = COFFEE.read_bytes()
    assert labels(infer(server, body(tensor(image))))[0] == LABEL
    assert labels(classify(server, image))[0] == LABEL


def assert_sentence(error: Any) -> None:
    """Assert that an error is one sentence for users without implementation details."""
    assert isinstance(error, str)
    assert re.fullmatch(r"[A-Z0-9'].{5,}\.", error, re.DOTALL), error
    assert len(error) < 500, error
    assert not PYTHON.search(error), error


def assert_refused(response: Any, status: int = 400) -> str:
    """Assert the status of a refusal, and return its sentence."""
    assert response.status_code == status, response.text[:500]
    content = response.json()
    assert list(content) == ["error"], content
    assert_sentence(content["error"])
    return content["error"]


def resident(server: LocalServer) -> int:
    """Return the resident memory of the server and its children in bytes."""
    total = 0
    for pid in [server.process.pid, *children(server)]:
        try:
            pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        except FileNotFoundError:
            continue
        total += int(pages) * 4096
    return total


def children(server: LocalServer) -> list[int]:
    """Return the processes that the server has started, and those that these have started."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_running(pid := int(entry.name)):
            parents[pid] = int(stat_fields(pid)[1])
    family = [server.process.pid]
    for pid in family:  # the loop extends the list
        family += [child for child, parent in parents.items() if parent == pid]
    return family[1:]


def decoders(server: LocalServer) -> list[int]:
    """Return the server's image decoders."""
    supervisors = [pid for pid in children(server) if b"images.worker" in _command(pid)]
    return supervisors[1:]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def workers(server: LocalServer) -> list[int]:
    """Return the server's parallel workers, oldest first."""
    return sorted(pid for pid in children(server) if b"spawn_main" in _command(pid))
