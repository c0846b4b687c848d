"""Invalid gRPC messages get INVALID_ARGUMENT and one sentence."""

import struct
from typing import Any

import pytest
from mlserver.grpc import dataplane_pb2 as pb

from tests.support.app import App
from tests.support.clients import message
from tests.support.refusals import GOOD, PIXELS, refused


def pixels(shape: list[int], values: Any = PIXELS, datatype: str = "UINT8", **more: Any) -> Any:
    return message(shape, datatype, uint_contents=values, **more)


MESSAGES = {
    "no-inputs": message(count=0),
    "doubled": message(count=2, bytes_contents=[GOOD]),
    "misnamed": message(name="image", bytes_contents=[GOOD]),
    "no-name": message(name="", bytes_contents=[GOOD]),
    "no-data": message(),
    "no-datatype": message(datatype="", bytes_contents=[GOOD]),
    "unknown-datatype": message(datatype="IMAGE", bytes_contents=[GOOD]),
    "too-few-values": pixels([2, 2, 3], PIXELS[:-1]),
    "too-many-values": pixels([2, 2, 3], [*PIXELS, 1]),
    "shape-empty": pixels([]),
    "negative": pixels([-2, -2, 3]),
    "zero": pixels([0, 2, 3], []),
    "absurd": pixels([2**40, 2**40, 3]),
    "absurd-batch": pixels([2**62, 2, 2, 3]),
    "1-dimension": pixels([12]),
    "2-dimensions": pixels([3, 5]),
    "5-dimensions": pixels([1, 1, 2, 2, 3]),
    "2-channels": pixels([2, 3, 2]),
    "256": pixels([2, 2, 3], [*PIXELS[:-1], 256]),
    "minus-1": message([2, 2, 3], "INT32", int_contents=[-1] * 12),
    "huge-values": message([2, 2, 3], "UINT64", uint64_contents=[2**63] * 12),
    "floats": message([2, 2, 3], "UINT8", fp32_contents=[0.5] * 12),
    "FP32": message([2, 2, 3], "FP32", fp32_contents=[0.5] * 12),
    "FP64": message([2, 2, 3], "FP64", fp64_contents=[0.5] * 12),
    "FP16": message([1], "FP16", bytes_contents=[b"ab"]),
    "BOOL": message([2, 2, 3], "BOOL", bool_contents=[True] * 12),
    "bytes-as-pixels": message([2, 2, 3], "UINT8", bytes_contents=[bytes(12)]),
    "pixels-as-bytes": message([12], "BYTES", uint_contents=PIXELS),
    "bytes-too-few": message([2], bytes_contents=[GOOD]),
    "bytes-too-many": message([1], bytes_contents=[GOOD, GOOD]),
    "bytes-wide": message([1, 2], bytes_contents=[GOOD, GOOD]),
    "too-many-images": message([65], bytes_contents=[GOOD] * 65),
    "base64-invalid": message(bytes_contents=[b"!!"], tensor_parameters={"content_type": "base64"}),
    "content-type-number": message(bytes_contents=[GOOD], tensor_parameters={"content_type": 5}),
    "headers": message(bytes_contents=[GOOD], asked={"headers": "x"}),
    "raw-too-short": message([2, 2, 3], "UINT8", raw=[bytes(11)]),
    "raw-too-long": message([2, 2, 3], "UINT8", raw=[bytes(13)]),
    "raw-absurd": message([2**40, 2**20, 3], "UINT8", raw=[bytes(12)]),
    "raw-negative": message([-2, 2, 3], "UINT8", raw=[bytes(12)]),
    "raw-unknown-datatype": message([2, 2, 3], "IMAGE", raw=[bytes(12)]),
    "raw-float": message([2, 2, 3], "FP32", raw=[bytes(48)]),
    "raw-bytes-length-lies": message(raw=[b"\xff\xff\xff\xff" + GOOD]),
    "raw-bytes-half-a-length": message(raw=[b"\x01\x00"]),
    "raw-for-two": message(count=2, raw=[struct.pack("<I", len(GOOD)) + GOOD]),
    "unknown-output": message(bytes_contents=[GOOD], outputs=("boxes",)),
    "id-with-a-line-break": message(bytes_contents=[GOOD], identifier="a\r\nb"),
    "id-beyond-ascii": message(bytes_contents=[GOOD], identifier="ключ"),
    "id-long": message(bytes_contents=[GOOD], identifier="x" * 257),
    **{
        f"top-k-{k!r}": message(bytes_contents=[GOOD], asked={"top_k": k})
        for k in (0, -1, 1001, 10**9, 2**62, True, "x", "2.5")
    },
}


@pytest.mark.parametrize("request_message", MESSAGES.values(), ids=MESSAGES.keys())
def test_invalid_message(app: App, request_message: pb.ModelInferRequest) -> None:
    refused(app, request_message)
