"""gRPC messages are read as MLServer's own converter reads them, without copies."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter

from mlserver_timm.errors import InvalidImage, InvalidRequest
from mlserver_timm.mlserver_types import to_inference_response
from mlserver_timm.protocol.request import InferRequest, classification_request
from mlserver_timm.protocol.response import ClassificationResponse, OutputTensor
from mlserver_timm.server.grpc_messages import (
    read_message,
    requested_model,
    response_message,
)
from tests.support.binary_tensors import elements
from tests.support.clients import assert_sentence, message
from tests.support.fuzz_targets import NETWORK_OUTPUTS
from tests.support.refusals import GOOD, PIXELS

files = st.lists(st.binary(max_size=20), min_size=1, max_size=4)
pixels = st.binary(min_size=1, max_size=50)
TYPES = ["UINT8", "INT8", "UINT16", "INT32", "INT64", "UINT64"]

FIELDS = {
    "UINT8": "uint_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
}
parameters = st.dictionaries(
    st.text(max_size=5),
    st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1))
    | st.builds(pb.InferParameter, string_param=st.text(max_size=5))
    | st.builds(pb.InferParameter, bool_param=st.booleans()),
    max_size=3,
)


def tensor(datatype: str, count: int) -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=[count])


@st.composite
def messages(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Return some inputs with contents, some with raw contents, in any order."""
    names = st.text(max_size=9)
    request = pb.ModelInferRequest(
        model_name=draw(names), model_version=draw(names), id=draw(st.text())
    )
    for name, value in draw(parameters).items():
        request.parameters[name].CopyFrom(value)
    for kind in draw(st.lists(st.sampled_from(["raw", "bytes", "pixels", "numbers"]), max_size=4)):
        values = draw(files)
        if kind == "numbers":
            datatype, content = draw(st.sampled_from(sorted(FIELDS))), draw(pixels)
            request.inputs.append(tensor(datatype, len(content)))
            getattr(request.inputs[-1].contents, FIELDS[datatype]).extend(content)
            continue
        if kind == "pixels":
            datatype, content = draw(st.sampled_from(TYPES)), draw(pixels)
            if datatype == "INT8":
                content = bytes(each & 127 for each in content)
            array = np.frombuffer(content, np.uint8).astype(datatype.lower())
            request.inputs.append(tensor(datatype, len(content)))
            request.raw_input_contents.append(array.tobytes())
            continue
        request.inputs.append(tensor("BYTES", len(values)))
        if kind == "raw":
            request.raw_input_contents.append(elements(*values))
        else:
            request.inputs[-1].contents.bytes_contents.extend(values)
    for each in request.inputs:
        each.name = draw(names)
        if each.HasField("contents"):
            each.shape[:] = draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6))
        for name, value in draw(parameters).items():
            each.parameters[name].CopyFrom(value)
    return request


def read(body: bytes) -> InferRequest:
    return read_message(body).request


@given(messages())
def test_as_mlserver_reads_them(request_: pb.ModelInferRequest) -> None:
    expected = ModelInferRequestConverter.to_types(request_)
    body = request_.SerializeToString()
    received = read_message(body)
    assert received.model_name == request_.model_name
    assert received.model_version == request_.model_version
    assert requested_model(body) == (request_.model_name, request_.model_version or None)
    request = received.request
    assert (request.id or "") == expected.id
    given_parameters = expected.parameters.model_extra if expected.parameters else {}
    assert dict(request.parameters) == {
        **(given_parameters or {}),
        **({"content_type": "x"} if "content_type" in request.parameters else {}),
    }
    assert [each.shape for each in request.inputs] == [each.shape for each in expected.inputs]
    assert [list(each.data) for each in request.inputs] == [
        list(each.data.root) for each in expected.inputs
    ]


def test_pixels_are_not_copied() -> None:
    request = pb.ModelInferRequest(inputs=[tensor("UINT8", 1000)], raw_input_contents=[bytes(1000)])
    body = request.SerializeToString()
    [array] = [each.data for each in read(body).inputs]
    assert isinstance(array, np.ndarray)
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))


# --- Parameters of the newer protocol ---------------------------------------------------------


def with_parameter(name: str, value: bytes, of_input: bool = False) -> bytes:
    """Return a message with a parameter in protobuf's wire format, as MLServer's messages lack it:
    `double_param` is field 4, `uint64_param` field 5."""
    entry = b"\x0a" + bytes([len(name)]) + name.encode() + b"\x12" + bytes([len(value)]) + value
    request = message(bytes_contents=[GOOD])
    if not of_input:
        return request.SerializeToString() + b"\x22" + bytes([len(entry)]) + entry
    one = request.inputs[0].SerializeToString() + b"\x22" + bytes([len(entry)]) + entry
    del request.inputs[:]
    size = bytes([len(one) & 127 | 128, len(one) >> 7])
    return request.SerializeToString() + b"\x2a" + size + one


def double(value: float) -> bytes:
    return b"\x21" + struct.pack("<d", value)


@pytest.mark.parametrize("of_input", [False, True])
@pytest.mark.parametrize("value", [b"\x28\x02", double(2.0)])
def test_top_k_in_new_parameters(value: bytes, of_input: bool) -> None:
    """tritonclient sends Python's floats as doubles."""
    request = read(with_parameter("top_k", value, of_input))
    assert classification_request(request, NETWORK_OUTPUTS).top_k == 2


@pytest.mark.parametrize("value", [b"\x28\x00", double(2.5), double(-1), double(float("nan"))])
def test_refused_top_k_in_new_parameters(value: bytes) -> None:
    with pytest.raises(InvalidRequest, match="whole number"):
        classification_request(read(with_parameter("top_k", value)), NETWORK_OUTPUTS)


@pytest.mark.parametrize("value", [b"\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", double(1e300)])
def test_other_new_parameters_are_ignored(value: bytes) -> None:
    request = read(with_parameter("priority", value))
    assert classification_request(request, NETWORK_OUTPUTS).top_k == 3


@pytest.mark.parametrize("value", [b"", b"\x32\x01x", b"\x2a\x01x", b"\x20\x01"])
def test_parameters_without_a_value(value: bytes) -> None:
    """Their type is in no version of the protocol."""
    with pytest.raises(InvalidRequest, match="'top_k' has no value") as error:
        read(with_parameter("top_k", value))
    assert_sentence(str(error.value))


def test_tritonclients_parameters() -> None:
    """Its messages with the new fields come from another process: protobuf allows one definition of
    a message per process."""
    import subprocess
    import sys

    code = (
        "import sys; from tritonclient.grpc import service_pb2 as pb; "
        "r = pb.ModelInferRequest(model_name='x'); r.parameters['priority'].uint64_param = 1; "
        "r.parameters['top_k'].double_param = 2; "
        "sys.stdout.buffer.write(r.SerializeToString(deterministic=True))"
    )
    body = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert read(body).parameters == {"priority": 1, "top_k": 2}


# --- Refusals ---------------------------------------------------------------------------------


def of_pixels(shape: list[int], values: Any = PIXELS, **more: Any) -> pb.ModelInferRequest:
    return message(shape, "UINT8", uint_contents=values, **more)


REFUSED = [
    ("exactly one input", message(count=0)),
    ("exactly one input", message(name="", bytes_contents=[GOOD])),
    ("does not fit 0 elements", message()),
    ("Unsupported datatype 'FP32'", message([2, 2, 3], "FP32", fp32_contents=[0.5] * 12)),
    ("needs 12 values; the data has 11", of_pixels([2, 2, 3], PIXELS[:-1])),
    ("needs 12 values; the data has 0", message([2, 2, 3], "UINT8", fp32_contents=[0.5] * 12)),
    ("needs 12 values; the data has 0", message([2, 2, 3], "UINT8", bytes_contents=[bytes(12)])),
    ("does not fit 0 elements", message([12], "BYTES", uint_contents=PIXELS)),
    ("0 to 255", message([2, 2, 3], "INT32", int_contents=[-1] * 12)),
    ("0 to 255", of_pixels([2, 2, 3], [*PIXELS[:-1], 256])),
    ("'content_type' must be text", message(bytes_contents=[GOOD], params={"content_type": 5})),
    ("whole number", message(bytes_contents=[GOOD], params={"top_k": True})),
    ("needs 12 bytes of UINT8; the binary data has 4", message([2, 2, 3], "UINT8", raw=[b"four"])),
    ("needs 12 bytes", message([-2, 2, -3], "UINT8", raw=[b"x"])),
    ("0 to 255", message([1], "INT32", raw=[b"\xff\xff\xff\xff"])),
    ("ends within element 0", message(raw=[b"\x09\0\0\0cut"])),
    ("more than inputs without", message(raw=[elements(b"a"), elements(b"b")])),
]


@pytest.mark.parametrize(("reason", "request_"), REFUSED)
def test_refused(reason: str, request_: pb.ModelInferRequest) -> None:
    with pytest.raises((InvalidRequest, InvalidImage), match=reason) as error:
        classification_request(read(request_.SerializeToString()), NETWORK_OUTPUTS)
    assert_sentence(str(error.value))


def test_options() -> None:
    request_ = message(
        bytes_contents=[GOOD],
        identifier="x",
        params={"top_k": 1, "headers": "x"},
        outputs=("scores",),
    )
    request = classification_request(read(request_.SerializeToString()), NETWORK_OUTPUTS)
    assert request.images == [GOOD]
    assert (request.id, request.top_k, request.outputs) == ("x", 1, ("scores",))
    assert (
        classification_request(
            read(message(bytes_contents=[GOOD]).SerializeToString()), NETWORK_OUTPUTS
        ).id
        is None
    )


# --- Responses --------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [False, True])
def test_responses_are_written_as_mlserver_writes_them(raw: bool) -> None:
    outputs = (
        OutputTensor("labels", "BYTES", (1, 2), ["tabby", "Kätzchen"]),
        OutputTensor("scores", "FP32", (1, 2), np.array([[0.75, 0.1]], np.float32)),
    )
    response = ClassificationResponse("tinyvit", "v1", "x", outputs)
    expected = ModelInferResponseConverter.from_types(to_inference_response(response), raw)
    if raw:
        for output in expected.outputs:
            output.ClearField("contents")  # empty ones
    assert response_message(response, raw) == expected
