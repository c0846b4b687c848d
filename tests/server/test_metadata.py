"""Metadata of the model, and liveness during a cold start."""

import time
from pathlib import Path

import pytest
import requests
from mlserver.grpc import dataplane_pb2 as pb
from PIL import Image

from client.local import LocalServer
from tests.support.answers import answers, assert_timms_answers
from tests.support.clients import CLASSES, COFFEE, body, request, stub, tensor
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


def test_metadata(server: LocalServer) -> None:
    metadata = request(server, "GET", "/v2/models/tinyvit").json()
    assert (metadata["name"], metadata["platform"]) == ("tinyvit", "timm")
    assert [(one["name"], one["datatype"]) for one in metadata["inputs"]] == [("payload", "UINT8")]
    assert metadata["parameters"].items() >= FACTS.items()


def test_metadata_over_grpc(server: LocalServer) -> None:
    metadata = stub(server).ModelMetadata(pb.ModelMetadataRequest(name="tinyvit"), timeout=10)
    assert metadata.platform == "timm"
    assert [one.name for one in metadata.inputs] == ["payload"]
    assert [one.name for one in metadata.outputs] == ["labels", "scores", "logits", "embedding"]
    facts = {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in metadata.parameters.items()
    }
    assert facts.items() >= FACTS.items()


@pytest.mark.slow
def test_cold_start(serve: Serve, tmp_path: Path) -> None:
    """Liveness answers while the network is converted; the first answer equals later ones."""
    server = serve(env={"TINYVIT_CACHE_DIR": str(tmp_path / "cold")}, ready=False)
    live_while_loading = 0
    while not is_ok(server, "ready"):
        assert server.process.poll() is None, server.output()
        live = is_ok(server, "live")
        assert live or not live_while_loading, "it was live before"
        live_while_loading += live
        time.sleep(0.05)
    assert live_while_loading > 20
    image = body(tensor(COFFEE.read_bytes()))
    assert_timms_answers(server, image, Image.open(COFFEE).convert("RGB"))
    assert answers(server, image) == answers(server, image)


def is_ok(server: LocalServer, endpoint: str) -> bool:
    """Return whether a health endpoint says 200 within a second."""
    try:
        return requests.get(f"{server.url}/v2/health/{endpoint}", timeout=1).ok
    except requests.ConnectionError:
        return False
