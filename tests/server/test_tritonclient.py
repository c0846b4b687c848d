"""NVIDIA's client over HTTP and gRPC, with its defaults."""

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.local import LocalServer
from tests.support.clients import COFFEE, LABEL, assert_sentence, text
from tests.support.programs import output_of

http = importlib.import_module("tritonclient.http")
PIXELS = np.asarray(Image.open(COFFEE).convert("RGB").resize((120, 90)))


@pytest.fixture
def client(server: LocalServer) -> Iterator[Any]:
    with http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def array_input(**options: Any) -> Any:
    payload = http.InferInput("payload", list(PIXELS.shape), "UINT8")
    payload.set_data_from_numpy(PIXELS, **options)
    return payload


def file_input(data: bytes, **options: Any) -> Any:
    payload = http.InferInput("payload", [1], "BYTES")
    payload.set_data_from_numpy(np.array([data], dtype=object), **options)
    return payload


def test_http_health_and_metadata(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("tinyvit")
    metadata = client.get_model_metadata("tinyvit")
    assert metadata["inputs"][0]["name"] == "payload"
    assert [output["name"] for output in metadata["outputs"]][:2] == ["labels", "scores"]


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("kind", ["pixels", "file"])
def test_http_binary_tensors(client: Any, kind: str, compression: str | None) -> None:
    answer = client.infer(
        "tinyvit",
        [array_input() if kind == "pixels" else file_input(COFFEE.read_bytes())],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    assert answer.as_numpy("labels").shape == answer.as_numpy("scores").shape == (1, 5)
    assert answer.as_numpy("labels")[0, 0] == LABEL.encode()
    assert answer.as_numpy("scores").dtype == np.float32
    assert answer.as_numpy("embedding") is None


@pytest.mark.parametrize("kind", ["pixels", "file"])
def test_http_json(client: Any, kind: str) -> None:
    file = file_input(text(COFFEE.read_bytes()).encode(), binary_data=False)
    payload = array_input(binary_data=False) if kind == "pixels" else file
    outputs = [http.InferRequestedOutput("labels", binary_data=False)]
    answer = client.infer("tinyvit", [payload], outputs=outputs, parameters={"top_k": 3})
    assert answer.as_numpy("labels").shape == (1, 3)
    assert answer.as_numpy("labels")[0, 0] in (LABEL, LABEL.encode())
    assert answer.as_numpy("scores") is None


def test_http_mixed_outputs(client: Any) -> None:
    """Some outputs are binary and some JSON, optional ones too."""
    is_binary = {"embedding": True, "labels": False, "scores": True, "logits": False}
    outputs = [http.InferRequestedOutput(n, binary_data=b) for n, b in is_binary.items()]
    answer = client.infer("tinyvit", [array_input()], outputs=outputs)
    response = answer.get_response()["outputs"]
    assert {one["name"]: "data" not in one for one in response} == is_binary
    metadata = client.get_model_metadata("tinyvit")["outputs"]
    declared = {output["name"]: output["shape"][1] for output in metadata}
    for name in ("logits", "embedding"):
        assert answer.as_numpy(name).shape == (1, declared[name])


def test_http_refusals(client: Any) -> None:
    floats = http.InferInput("payload", [1, 1, 3], "FP32")
    floats.set_data_from_numpy(np.zeros((1, 1, 3), np.float32))
    for send, status in (
        (lambda: client.infer("tinyvit", [file_input(b"hello")]), "400"),
        (lambda: client.infer("tinyvit", [floats]), "400"),
        (lambda: client.get_model_config("tinyvit"), "404"),
    ):
        with pytest.raises(http.InferenceServerException) as failure:
            send()
        assert failure.value.status() == status
        assert_sentence(failure.value.message())


GRPC = """
import sys
import numpy as np
import tritonclient.grpc as grpc
from PIL import Image

client = grpc.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tinyvit")
assert [one.name for one in client.get_model_metadata("tinyvit").inputs] == ["payload"]
outputs = [grpc.InferRequestedOutput("scores"), grpc.InferRequestedOutput("labels")]
pixels = np.asarray(Image.open(sys.argv[2]).convert("RGB").resize((120, 90)))
for value, shape, kind in (
    (pixels, list(pixels.shape), "UINT8"),
    (np.array([open(sys.argv[2], "rb").read()], object), [1], "BYTES"),
    (np.array([[b"hello"]], object), [1, 1], "BYTES"),
):
    payload = grpc.InferInput("payload", shape, kind)
    payload.set_data_from_numpy(value)
    try:
        answer = client.infer("tinyvit", [payload], outputs=outputs, parameters={"top_k": 2})
    except grpc.InferenceServerException as error:
        print(error.status(), error.message())
    else:
        scores = answer.as_numpy("scores")
        assert scores.shape == (1, 2) and scores.dtype == np.float32
        assert 0 < scores[0, 1] < scores[0, 0] <= 1
        print(answer.as_numpy("labels")[0, 0].decode())
"""


def test_grpc(server: LocalServer) -> None:
    """In another process, because its protobuf messages have the names of MLServer's."""
    output = output_of(sys.executable, "-c", GRPC, server.grpc, COFFEE)
    array, file, refusal = output.splitlines()
    assert (array, file) == (LABEL, LABEL)
    status, _, sentence = refusal.partition(" ")
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert_sentence(sentence)
