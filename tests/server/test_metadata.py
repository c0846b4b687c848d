"""What the server says of itself, and from when on."""

import time
from typing import Any

import requests
from mlserver.grpc import dataplane_pb2 as pb
from PIL import Image

from client.local import LocalServer
from tests.support.answers import answers, assert_true
from tests.support.clients import CLASSES, COFFEE, body, stub, tensor
from tests.support.servers import Serve

FACTS = {
    "weights": "sample",
    "fallback": True,
    "architecture": "tf_efficientnet_lite0",
    "classes": CLASSES,
    "input_size": "3x224x224",
    "engine": "openvino",
    "precision": "fp32",
}


def test_metadata(either_server: LocalServer) -> None:
    url = f"{either_server.url}/v2/models/tinyvit"
    metadata = requests.get(url, timeout=10).json()
    assert metadata["name"] == "tinyvit"
    assert metadata["platform"] == "timm"
    assert [(one["name"], one["datatype"]) for one in metadata["inputs"]] == [("payload", "UINT8")]
    outputs = [(one["name"], one["datatype"]) for one in metadata["outputs"]]
    assert outputs == [
        ("labels", "BYTES"),
        *[(name, "FP32") for name in ("scores", "logits", "embedding")],
    ]
    assert metadata["parameters"].items() >= FACTS.items()


def test_metadata_over_grpc(either_server: LocalServer) -> None:
    request = pb.ModelMetadataRequest(name="tinyvit")
    metadata = stub(either_server).ModelMetadata(request, timeout=10)
    assert metadata.platform == "timm"
    assert [one.name for one in metadata.inputs] == ["payload"]
    assert [one.name for one in metadata.outputs] == ["labels", "scores", "logits", "embedding"]
    parameters = metadata.parameters
    facts = {
        name: getattr(one, one.WhichOneof("parameter_choice")) for name, one in parameters.items()
    }
    assert facts.items() >= FACTS.items()


def test_page(either_server: LocalServer) -> None:
    response = requests.get(either_server.url + "/", timeout=10)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "tinyvit" in response.text and "{{" not in response.text


def test_first_request_after_a_cold_start(serve: Serve, tmp_path: Any) -> None:
    """Liveness is answered all the while that a network is converted and loaded; and the first
    answer is as right as those that follow."""
    server = serve(env={"TINYVIT_CACHE_DIR": str(tmp_path / "cold")}, ready=False)
    alive_while_loading = 0
    while True:
        ready = answers_ok(server, "ready")
        live = answers_ok(server, "live")
        if ready:
            break
        assert server.process.poll() is None, server.output()
        assert live or not alive_while_loading, "it was alive before"
        alive_while_loading += live
        time.sleep(0.05)
    assert alive_while_loading > 20
    picture = Image.open(COFFEE).convert("RGB")
    request = body(tensor(COFFEE.read_bytes()))
    assert_true(server, request, picture)
    first, second = answers(server, request), answers(server, request)
    assert first == second


def answers_ok(server: LocalServer, what: str) -> bool:
    """Within a second; False also where nothing listens yet."""
    try:
        return requests.get(f"{server.url}/v2/health/{what}", timeout=1).ok
    except requests.ConnectionError:
        return False
