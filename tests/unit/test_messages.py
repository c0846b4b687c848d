"""Messages are read as MLServer reads them, but for the copies."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.converters import ModelInferRequestConverter
from mlserver.types import InferenceRequest
from timm_runtime.errors import BodiesFull, InvalidRequest
from timm_runtime.rpc.held_messages import HeldMessages
from timm_runtime.rpc.messages import put_raw_contents, read_message

elements = st.lists(st.binary(max_size=20), min_size=1, max_size=4)
pixels = st.binary(min_size=1, max_size=50)
TYPES = ["UINT8", "INT8", "UINT16", "INT32", "INT64", "UINT64"]


def packed(values: list[bytes]) -> bytes:
    return b"".join(len(each).to_bytes(4, "little") + each for each in values)


def tensor(datatype: str, count: int) -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=[count])


@st.composite
def messages(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Some inputs with contents, some with raw contents, in any order."""
    request = pb.ModelInferRequest(model_name=draw(st.text(max_size=9)), id=draw(st.text()))
    for kind in draw(st.lists(st.sampled_from(["raw", "bytes", "pixels"]), max_size=4)):
        values = draw(elements)
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
            request.raw_input_contents.append(packed(values))
        else:
            request.inputs[-1].contents.bytes_contents.extend(values)
    return request


def read(body: bytes) -> InferenceRequest:
    message = read_message(body)
    request = ModelInferRequestConverter.to_types(message.parsed)
    put_raw_contents(request, message.raw_input_contents)
    return request


@given(messages())
def test_as_mlserver_reads_them(message: pb.ModelInferRequest) -> None:
    expected = ModelInferRequestConverter.to_types(message)
    request = read(message.SerializeToString())
    assert request.id == expected.id
    assert [list(each.data.root) for each in request.inputs] == [
        list(each.data.root) for each in expected.inputs
    ]


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
        ("BYTES", 1, [packed([b"a"]), packed([b"b"])]),
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
