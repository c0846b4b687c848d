"""x"""

import base64
import time
from collections.abc import Callable
from typing import Any

import grpc
import requests
from mlserver.grpc import dataplane_pb2 as messages
from mlserver.grpc import dataplane_pb2_grpc as services
from prometheus_client.parser import text_string_to_metric_families

from conftest import ROOT
from local import LocalServer

IMAGE = (ROOT / "imgs" / "coffee.jpg").read_bytes()


def until(condition: Callable[[], Any], seconds: float = 45) -> Any:
    """What the condition gives as soon as it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise TimeoutError("the condition was not met in time")


def infer(server: LocalServer, images: int = 1, **more: Any) -> requests.Response:
    picture = base64.b64encode(IMAGE).decode()
    tensor = {"name": "payload", "datatype": "BYTES", "shape": [images], "data": [picture] * images}
    body = {"inputs": [tensor], **more}
    return requests.post(f"{server.url}/v2/models/tinyvit/infer", json=body, timeout=30)


def classify(server: LocalServer, picture: bytes = IMAGE, **headers: str) -> requests.Response:
    url = f"{server.url}/v2/models/tinyvit/classify"
    return requests.post(url, data=picture, headers=headers, timeout=30)


def infer_grpc(server: LocalServer) -> None:
    tensor = messages.ModelInferRequest.InferInputTensor(
        name="payload", datatype="BYTES", shape=[1]
    )
    tensor.contents.bytes_contents.append(IMAGE)
    request = messages.ModelInferRequest(model_name="tinyvit", inputs=[tensor])
    with grpc.insecure_channel(server.grpc) as channel:
        services.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=20)


def measured(server: LocalServer) -> dict[str, float]:
    """Each tinyvit sample, summed over its labels; buckets aside."""
    text = requests.get(server.metrics, timeout=5).text
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("tinyvit_") and not sample.name.endswith("_bucket"):
                totals[sample.name] = totals.get(sample.name, 0) + sample.value
    return totals
