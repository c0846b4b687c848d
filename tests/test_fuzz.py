"""Inputs and clients that nobody here wrote: generated requests, mutated files, tritonclient."""

import contextlib
import importlib
import json
import random
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies as st
from mlserver.grpc import dataplane_pb2 as pb
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from clients import (
    COFFEE,
    FORMATS,
    LABEL,
    assert_sane,
    assert_sentence,
    image_file,
    infer,
    stub,
    tensor,
    text,
)
from local import LocalServer

QUIET = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
PIXEL = tensor([1, 2, 3], [1, 1, 3], "UINT8")
SMALL = image_file("PNG", (8, 8))


def assert_answered(response: requests.Response) -> None:
    """Answered rightly or refused with a sentence; never a fault of the server."""
    if response.status_code == 200:
        return
    assert 400 <= response.status_code < 500, (response.status_code, response.text[:500])
    assert_sentence(response.json()["error"])


# --- Requests ---------------------------------------------------------------------------------

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def nearly(*right: Any) -> st.SearchStrategy[Any]:
    """What is right, mostly."""
    fitting = st.sampled_from(right)
    return st.one_of(fitting, fitting, fitting, anything)


sizes = st.sampled_from([0, 1, 2, 3, 4, -1, 64, 2**31, 2**63, 2**64]) | st.integers()
tensors = st.fixed_dictionaries(
    {
        "name": nearly("payload"),
        "shape": st.one_of(nearly([1, 1, 3], [1], [1, 1]), st.lists(sizes, max_size=6)),
        "datatype": nearly("UINT8", "BYTES", "INT64", "FP32", "BOOL"),
        "data": st.one_of(
            nearly([1, 2, 3], [text(SMALL)]),
            st.lists(st.integers(-10, 300), max_size=12),
            st.lists(st.text(max_size=20), max_size=3),
        ),
    },
    optional={"parameters": nearly({}, {"content_type": "base64"}, {"content_type": "np"})},
)
requests_of_nearly_the_right_shape = st.fixed_dictionaries(
    {"inputs": st.one_of(st.lists(tensors, max_size=2), st.just([PIXEL]), anything)},
    optional={
        "id": nearly("42", None),
        "outputs": nearly([{"name": "labels"}], [{"name": "scores"}], []),
        "parameters": nearly({}, {"top_k": 3})
        | st.dictionaries(
            st.sampled_from(["top_k", "content_type", "headers", "self", "root"]), anything
        ),
        "extra": anything,
    },
)


def test_requests_of_nearly_the_right_shape(either_server: LocalServer) -> None:
    @QUIET
    @given(requests_of_nearly_the_right_shape)
    def check(request: Any) -> None:
        data = json.dumps(request, ensure_ascii=True).encode()
        assert_answered(infer(either_server, data, headers={"Content-Type": "application/json"}))

    check()
    assert_sane(either_server)


def test_messages_of_nearly_the_right_shape(either_server: LocalServer) -> None:
    """Whatever protobuf can hold, over gRPC."""
    import grpc

    int64 = st.integers(-(2**63), 2**63 - 1)
    parameters = st.dictionaries(
        st.sampled_from(["top_k", "content_type", "headers", "x"]),
        st.one_of(
            st.builds(pb.InferParameter, int64_param=int64),
            st.builds(pb.InferParameter, string_param=st.text(max_size=9)),
            st.builds(pb.InferParameter, bool_param=st.booleans()),
            st.just(pb.InferParameter()),
        ),
        max_size=2,
    )
    contents = st.one_of(
        st.builds(
            pb.InferTensorContents, uint_contents=st.lists(st.integers(0, 2**32 - 1), max_size=4)
        ),
        st.builds(pb.InferTensorContents, int64_contents=st.lists(int64, max_size=4)),
        st.builds(pb.InferTensorContents, fp32_contents=st.lists(st.floats(width=32), max_size=4)),
        st.builds(pb.InferTensorContents, bytes_contents=st.lists(st.binary(), max_size=2)),
        st.just(pb.InferTensorContents(bytes_contents=[SMALL])),
        st.just(pb.InferTensorContents(uint_contents=[1, 2, 3])),
    )
    inputs = st.builds(
        pb.ModelInferRequest.InferInputTensor,
        name=st.sampled_from(["payload", "payload", "payload", "", "x"]),
        datatype=st.sampled_from(["UINT8", "BYTES", "INT64", "FP32", "FP16", "", "x"]),
        shape=st.sampled_from([[1, 1, 3], [1]]) | st.lists(int64, max_size=5),
        contents=contents,
        parameters=parameters,
    )
    messages = st.builds(
        pb.ModelInferRequest,
        model_name=st.just("tinyvit"),
        id=st.text(max_size=4),
        inputs=st.lists(inputs, min_size=1, max_size=2),
        parameters=parameters,
        raw_input_contents=st.just([]) | st.lists(st.binary(max_size=12), max_size=2),
    )
    one = stub(either_server)
    refusals = (grpc.StatusCode.INVALID_ARGUMENT,)

    @QUIET
    @given(messages)
    def check(request: pb.ModelInferRequest) -> None:
        try:
            one.ModelInfer(request, timeout=60)
        except grpc.RpcError as error:
            assert error.code() in refusals, error.details()
            assert_sentence(error.details())

    check()
    assert_sane(either_server)


# --- Files ------------------------------------------------------------------------------------


def files() -> list[bytes]:
    """One of each format, and of each way of storing pixels that decoders treat apart."""
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        *[(kind, "RGB", {}) for kind in FORMATS],
        *[("PNG", mode, {}) for mode in ("1", "L", "P", "LA", "RGBA", "I;16")],
        ("PNG", "P", {"transparency": 3}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "L", {"progressive": True}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("GIF", "P", {"transparency": 1}),
        ("BMP", "P", {}),
        ("BMP", "1", {}),
    ]
    found = []
    for kind, mode, save in kinds:
        with contextlib.suppress(OSError, ValueError):  # a mode that this Pillow does not write
            found.append(image_file(kind, (40, 32), mode, **save))
    return found


seeds = st.integers(0, 2**32)


def mutate(data: bytes, generator: random.Random) -> bytes:
    """A few bytes changed, dropped, doubled or cut off, mostly near the beginning."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 3, 8))):
        at = min(int(generator.expovariate(1 / 60)), len(changed) - 1)
        how = generator.randrange(5)
        if how == 0:
            changed[at] = generator.randrange(256)
        elif how == 1:
            changed[at] = generator.choice((0, 1, 127, 128, 255))
        elif how == 2:
            del changed[at + 1 : at + generator.randrange(2, 6)]
        elif how == 3:
            changed[at:at] = generator.randbytes(generator.randrange(1, 6))
        else:
            del changed[generator.randrange(1, len(changed) + 1) :]
    return with_checksums(bytes(changed)) if generator.random() < 0.7 else bytes(changed)


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks' checksums are right, so that what is in them is looked at."""
    if not data.startswith(b"\x89PNG"):
        return data
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunk = data[at + 4 : at + 8 + length]
        if at + 12 + length > len(data):
            return bytes(out + data[at:])
        out += data[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + length
    return bytes(out)


@pytest.mark.parametrize("original", [pytest.param(f, id=str(i)) for i, f in enumerate(files())])
def test_mutated_files(server: LocalServer, original: bytes) -> None:
    with requests.Session() as session:
        url = f"{server.url}/v2/models/tinyvit/classify"

        @settings(QUIET, max_examples=60)
        @given(seeds)
        def check(seed: int) -> None:
            data = mutate(original, random.Random(seed))
            assert_answered(session.post(url, data=data, timeout=60))

        check()
    assert_sane(server)


def test_mutated_files_without_a_server() -> None:
    """The same, many more, where a picture becomes pixels."""
    from images import ImageError, Preprocessing, open_image

    preprocess = Preprocessing((64, 64), "bicubic", 0.95, "center", (124, 116, 104))
    originals = files()

    @settings(QUIET, max_examples=3000)
    @given(st.sampled_from(originals), seeds)
    def check(original: bytes, seed: int) -> None:
        try:
            data = mutate(original, random.Random(seed))
            pixels = preprocess(open_image(data, 1_000_000))
        except ImageError as error:
            assert_sentence(str(error))
        else:
            assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8

    check()


# --- The server's own description of itself ---------------------------------------------------


def test_described_requests(server: LocalServer) -> None:
    """What the server says it takes, all of its operations. MLServer's document names a type that
    JSON Schema does not have; a list stands in its place."""
    address = f"{server.url}/v2/models/tinyvit/docs/dataplane.json"
    document = requests.get(address, timeout=60).json()
    document["components"]["schemas"]["TensorData"] = {"type": "array"}
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=server.url)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 12
    for operation in operations:

        @settings(QUIET, max_examples=25)
        @given(operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            response = case.call(timeout=60)
            assert response.status_code < 500, response.text
            if response.status_code == 404 and case.path.endswith("/ready"):
                return  # a version that there is not, which is not described
            checks = [status_code_conformance, response_schema_conformance]
            if "stream" not in case.path:  # which are described as JSON, and are none
                checks.append(content_type_conformance)
            case.validate_response(response, checks=checks)

        check()
    assert_sane(server)


# --- NVIDIA's client --------------------------------------------------------------------------


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
    assert [output["name"] for output in metadata["outputs"]] == ["labels", "scores"]
    wanted = [module.InferRequestedOutput("labels", binary_data=False)]
    for one in (
        of_pixels(module, binary_data=False),
        of_file(module, text(COFFEE.read_bytes()).encode(), binary_data=False),
    ):
        answer = client.infer("tinyvit", [one], outputs=wanted, parameters={"top_k": 3})
        assert answer.as_numpy("labels").shape == (1, 3)
        assert answer.as_numpy("labels")[0, 0] in (LABEL, LABEL.encode())
        assert answer.as_numpy("scores") is None
    with pytest.raises(module.InferenceServerException, match="makes no image") as failure:
        float_input = module.InferInput("payload", [1, 1, 3], "FP32")
        float_input.set_data_from_numpy(np.zeros((1, 1, 3), np.float32), binary_data=False)
        client.infer("tinyvit", [float_input])
    assert failure.value.status() == "400"


def test_triton_http_binary(triton_http: Any) -> None:
    """Triton's binary extension, which its client uses unless told not to, is not MLServer's."""
    module, client = triton_http
    with pytest.raises(module.InferenceServerException) as failure:
        client.infer("tinyvit", [of_pixels(module)])
    assert failure.value.status() == "400"
    assert_sentence(failure.value.message())
    assert "binary" in failure.value.message()


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
