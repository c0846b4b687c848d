"""The limits of gRPC messages hold for any bytes; test_grpc_messages.py has valid messages."""

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
    "content",
    [
        *(packed([1, value]) for value in (256, 300, 2**14, 2**63 - 1, -1)),
        *(packed([255])[:1], b"\x80\x00", b"\x81\x81"),
    ],
)
def test_packed_numbers_that_are_no_pixels(content: bytes) -> None:
    with pytest.raises(InvalidRequest, match="whole numbers from 0 to 255"):
        read_varints(content)
