"""NVIDIA's client speaks to the server."""

import importlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from client.local import LocalServer
from tests.support.clients import COFFEE, LABEL, assert_sentence, text


@pytest.fixture
def triton_http(either_server: LocalServer) -> Any:
    client = importlib.import_module("tritonclient.http")
    with client.InferenceServerClient(either_server.url.removeprefix("http://")) as one:
        yield client, one


def of_pixels(client: Any, **options: Any) -> Any:
    from PIL import Image

    pixels = np.asarray(Image.open(COFFEE).convert("RGB").resize((120, 90)))
    one = client.InferInput("payload", list(pixels.shape), "UINT8")
    one.set_data_from_numpy(pixels, **options)
    return one


def of_file(client: Any, data: bytes, **options: Any) -> Any:
    one = client.InferInput("payload", [1], "BYTES")
    one.set_data_from_numpy(np.array([data], dtype=object), **options)
    return one


def assert_describes(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("tinyvit")


def test_triton_http(triton_http: Any) -> None:
    """Arrays as JSON; bytes as base64, since JSON has no others."""
    module, client = triton_http
    assert_describes(client)
    metadata = client.get_model_metadata("tinyvit")
    assert metadata["inputs"][0]["name"] == "payload"
    assert [output["name"] for output in metadata["outputs"]][:2] == ["labels", "scores"]
    wanted = [module.InferRequestedOutput("labels", binary_data=False)]
    for one in (
        of_pixels(module, binary_data=False),
        of_file(module, text(COFFEE.read_bytes()).encode(), binary_data=False),
    ):
        answer = client.infer("tinyvit", [one], outputs=wanted, parameters={"top_k": 3})
        assert answer.as_numpy("labels").shape == (1, 3)
        assert answer.as_numpy("labels")[0, 0] in (LABEL, LABEL.encode())
        assert answer.as_numpy("scores") is None
    with pytest.raises(module.InferenceServerException, match="Unsupported datatype") as failure:
        float_input = module.InferInput("payload", [1, 1, 3], "FP32")
        float_input.set_data_from_numpy(np.zeros((1, 1, 3), np.float32), binary_data=False)
        client.infer("tinyvit", [float_input])
    assert failure.value.status() == "400"


@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
@pytest.mark.parametrize("kind", ["pixels", "file"])
def test_triton_http_binary(triton_http: Any, kind: str, packed: str | None) -> None:
    """As it does unless told not to: binary tensors both ways, of both kinds."""
    module, client = triton_http
    one = of_pixels(module) if kind == "pixels" else of_file(module, COFFEE.read_bytes())
    answer = client.infer(
        "tinyvit",
        [one],
        request_compression_algorithm=packed,
        response_compression_algorithm=packed,
    )
    assert answer.as_numpy("labels").shape == answer.as_numpy("scores").shape == (1, 5)
    assert answer.as_numpy("labels")[0, 0] == LABEL.encode()
    assert answer.as_numpy("scores").dtype == np.float32
    assert answer.as_numpy("embedding") is None


def test_triton_http_mixed(triton_http: Any) -> None:
    """Some outputs in binary and some in JSON, those too that have to be asked for."""
    module, client = triton_http
    names = {"embedding": True, "labels": False, "scores": True, "logits": False}
    outputs = [module.InferRequestedOutput(n, binary_data=b) for n, b in names.items()]
    answer = client.infer("tinyvit", [of_pixels(module)], outputs=outputs)
    described = {one["name"]: one for one in answer.get_response()["outputs"]}
    assert list(described) == list(names)
    assert {name: "data" not in one for name, one in described.items()} == names
    shapes = {one["name"]: one["shape"] for one in client.get_model_metadata("tinyvit")["outputs"]}
    for name in ("logits", "embedding"):
        assert answer.as_numpy(name).shape == (1, shapes[name][1])


def test_triton_http_refusals(triton_http: Any) -> None:
    module, client = triton_http
    with pytest.raises(module.InferenceServerException) as failure:
        client.infer("tinyvit", [of_file(module, b"hello")])
    assert failure.value.status() == "400"
    assert_sentence(failure.value.message())


def test_triton_http_asks_for_what_there_is_not(triton_http: Any) -> None:
    """A model's config is Triton's own."""
    module, client = triton_http
    with pytest.raises(module.InferenceServerException) as failure:
        client.get_model_config("tinyvit")
    assert failure.value.status() == "404"
    assert_sentence(failure.value.message())


TRITON_GRPC = """
import sys
import numpy as np
import tritonclient.grpc as module
from PIL import Image

client = module.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tinyvit")
metadata = client.get_model_metadata("tinyvit")
assert [one.name for one in metadata.inputs] == ["payload"]
wanted = [module.InferRequestedOutput("scores"), module.InferRequestedOutput("labels")]
pixels = np.asarray(Image.open(sys.argv[2]).convert("RGB").resize((120, 90)))
for value, shape, kind in (
    (pixels, list(pixels.shape), "UINT8"),
    (np.array([open(sys.argv[2], "rb").read()], object), [1], "BYTES"),
    (np.array([[b"hello"]], object), [1, 1], "BYTES"),
):
    one = module.InferInput("payload", shape, kind)
    one.set_data_from_numpy(value)
    try:
        answer = client.infer("tinyvit", [one], outputs=wanted, parameters={"top_k": 2})
    except module.InferenceServerException as error:
        print(error.status(), error.message())
    else:
        scores = answer.as_numpy("scores")
        assert scores.shape == (1, 2) and scores.dtype == np.float32
        assert 0 < scores[0, 1] < scores[0, 0] <= 1
        print(answer.as_numpy("labels")[0, 0].decode())
"""


def test_triton_grpc(either_server: LocalServer) -> None:
    """In a process of its own: its protobuf messages have the names of MLServer's."""

    command = [sys.executable, "-c", TRITON_GRPC, either_server.grpc, str(COFFEE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    array, file, refusal = done.stdout.splitlines()
    assert (array, file) == (LABEL, LABEL)
    status, _, sentence = refusal.partition(" ")
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert_sentence(sentence)
