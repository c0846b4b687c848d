"""The limits of gRPC messages hold for any bytes and accept every valid message."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, strategies as st
from mlserver.grpc import dataplane_pb2 as pb

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.protocol import binary_tensors
from mlserver_timm.protocol.binary_tensors import read_varints
from mlserver_timm.server.grpc_messages import (
    MAX_FIELDS,
    read_message,
    requested_model,
)

contents = {
    "UINT8": {"uint_contents": st.lists(st.integers(0, 255), max_size=99)},
    "BYTES": {"bytes_contents": st.lists(st.binary(max_size=9), max_size=9)},
}
tensors = st.one_of(
    st.builds(
        pb.ModelInferRequest.InferInputTensor,
        name=st.text(max_size=9),
        datatype=st.just(datatype),
        shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6),
        parameters=st.dictionaries(
            st.text(max_size=5),
            st.builds(pb.InferParameter, int64_param=st.integers(0, 9)),
            max_size=3,
        ),
        contents=st.builds(pb.InferTensorContents, **values),
    )
    for datatype, values in contents.items()
)
messages = st.builds(
    pb.ModelInferRequest,
    model_name=st.text(max_size=20),
    model_version=st.text(max_size=3),
    id=st.text(max_size=9),
    inputs=st.lists(tensors, max_size=3),
)
raw_messages = st.lists(st.binary(min_size=1, max_size=30), max_size=3).map(
    lambda raw: pb.ModelInferRequest(
        model_name="x",
        inputs=[{"datatype": "UINT8", "shape": [len(each)]} for each in raw],
        raw_input_contents=raw,
    )
)


@given(messages | raw_messages)
def test_valid_messages_pass_and_name_their_model(message: pb.ModelInferRequest) -> None:
    body = message.SerializeToString()
    received = read_message(body)
    assert (received.model_name, received.model_version) == (
        message.model_name,
        message.model_version,
    )
    assert requested_model(body) == (message.model_name, message.model_version or None)


@given(st.binary(max_size=200))
def test_any_bytes_pass_or_are_refused(body: bytes) -> None:
    try:
        read_message(body)
    except (InvalidRequest, DecodeError):
        return
    requested_model(body)


def test_nested_fields_count() -> None:
    contents = pb.InferTensorContents(bytes_contents=[b""] * MAX_FIELDS)
    tensor = pb.ModelInferRequest.InferInputTensor(contents=contents)
    body = pb.ModelInferRequest(inputs=[tensor]).SerializeToString()
    with pytest.raises(InvalidRequest, match="fields"):
        read_message(body)


def test_long_shapes_are_refused() -> None:
    tensor = pb.ModelInferRequest.InferInputTensor(shape=[1] * 100)
    with pytest.raises(InvalidRequest, match="dimensions"):
        read_message(pb.ModelInferRequest(inputs=[tensor]).SerializeToString())


def packed(values: list[int]) -> bytes:
    """Return the numbers as protobuf packs them, without the field's key and length."""
    one = pb.InferTensorContents(uint64_contents=[value % 2**64 for value in values])
    return one.SerializeToString()[2:]


@given(st.lists(st.integers(0, 255), max_size=60), st.integers(1, 9))
def test_packed_pixels(values: list[int], size: int) -> None:
    """In slices of any size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binary_tensors, "VARINT_SLICE", size)
        np.testing.assert_array_equal(read_varints(packed(values)), np.array(values, np.uint8))


@pytest.mark.parametrize(
    "content", [packed([256]), packed([1, -1]), packed([255])[:1], b"\x80\x00", b"\x81\x81"]
)
def test_packed_numbers_that_are_no_pixels(content: bytes) -> None:
    with pytest.raises(InvalidRequest, match="whole numbers from 0 to 255"):
        read_varints(content)
