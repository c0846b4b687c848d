"""Messages are read as MLServer reads them, but for the copies."""

import struct

import numpy as np
import pytest
from hypothesis import given, strategies as st
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.converters import ModelInferRequestConverter
from mlserver.types import InferenceRequest

from mlserver_timm.errors import BodiesFull, InvalidRequest
from mlserver_timm.protocol.binary_tensors import VARINTS_AT_ONCE
from mlserver_timm.server.grpc_messages import HeldMessages, read_message
from tests.support.binary_tensors import elements

files = st.lists(st.binary(max_size=20), min_size=1, max_size=4)
pixels = st.binary(min_size=1, max_size=50)
TYPES = ["UINT8", "INT8", "UINT16", "INT32", "INT64", "UINT64"]

FIELDS = {
    "UINT8": "uint_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
}


def tensor(datatype: str, count: int) -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=[count])


@st.composite
def messages(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Some inputs with contents, some with raw contents, in any order."""
    request = pb.ModelInferRequest(model_name=draw(st.text(max_size=9)), id=draw(st.text()))
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
    return request


def read(body: bytes) -> InferenceRequest:
    message = read_message(body)
    request = ModelInferRequestConverter.to_types(message.parsed)
    message.put_data(request)
    return request


@given(messages())
def test_as_mlserver_reads_them(message: pb.ModelInferRequest) -> None:
    expected = ModelInferRequestConverter.to_types(message)
    request = read(message.SerializeToString())
    assert request.id == expected.id
    assert [list(each.data.root) for each in request.inputs] == [
        list(each.data.root) for each in expected.inputs
    ]


@pytest.mark.parametrize("size", [VARINTS_AT_ONCE - 1, VARINTS_AT_ONCE, 3 * VARINTS_AT_ONCE + 5])
def test_long_lists_of_numbers(size: int) -> None:
    """Also where a number of two bytes lies on the seam of two slices."""
    values = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    for shift in range(2):
        contents = pb.InferTensorContents(uint_contents=values[shift:].tolist())
        one = pb.ModelInferRequest.InferInputTensor(datatype="UINT8", contents=contents)
        request = read(pb.ModelInferRequest(inputs=[one]).SerializeToString())
        assert np.array_equal(request.inputs[0].data.root, values[shift:])


@pytest.mark.parametrize("value", [256, 300, 2**14, 2**63 - 1, -1])
def test_numbers_that_are_no_pixels(value: int) -> None:
    contents = pb.InferTensorContents(int64_contents=[1, value, 2])
    one = pb.ModelInferRequest.InferInputTensor(datatype="INT64", contents=contents)
    with pytest.raises(InvalidRequest, match="from 0 to 255"):
        read(pb.ModelInferRequest(inputs=[one]).SerializeToString())


def test_a_parameter_of_an_unknown_type() -> None:
    """tritonclient sends a double in a field that MLServer's messages do not have."""
    message = pb.ModelInferRequest(model_name="x").SerializeToString()
    double = b"\x29" + struct.pack("<d", 2.5)
    entry = b"\x0a\x05top_k\x12" + bytes([len(double)]) + double
    with pytest.raises(InvalidRequest, match="'top_k' has no value"):
        read(message + b"\x22" + bytes([len(entry)]) + entry)


def test_pixels_are_not_copied() -> None:
    message = pb.ModelInferRequest(inputs=[tensor("UINT8", 1000)], raw_input_contents=[bytes(1000)])
    body = message.SerializeToString()
    [array] = [each.data.root for each in read(body).inputs]
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize(
    ("datatype", "count", "raw"),
    [
        ("UINT8", 3, [b"four"]),
        ("UINT8", -1, [b"x"]),
        ("INT32", 1, [b"\xff\xff\xff\xff"]),
        ("BYTES", 1, [b"\x09\0\0\0cut"]),
        ("BYTES", 1, [elements(b"a"), elements(b"b")]),
    ],
)
def test_what_does_not_fit_is_refused(datatype: str, count: int, raw: list[bytes]) -> None:
    message = pb.ModelInferRequest(inputs=[tensor(datatype, count)], raw_input_contents=raw)
    with pytest.raises(InvalidRequest):
        read(message.SerializeToString())


class Call:
    """gRPC's context of one call."""

    def __init__(self) -> None:
        self.callbacks: list[object] = []

    def add_done_callback(self, callback: object) -> None:
        self.callbacks.append(callback)

    def end(self) -> None:
        for callback in self.callbacks:
            callback(self)  # type: ignore[operator]


def test_messages_are_held_until_their_call_is_over() -> None:
    body = pb.ModelInferRequest(raw_input_contents=[bytes(600)]).SerializeToString()
    held, first, second = HeldMessages(1000), Call(), Call()
    held.hold(first, read_message(body))
    with pytest.raises(BodiesFull):
        held.hold(second, read_message(body))
    second.end()
    held.hold(first, read_message(body))  # a stream's next
    first.end()
    held.hold(Call(), read_message(body))
