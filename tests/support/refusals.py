"""Requests that must be refused, and what a refusal looks like."""

import struct
import zlib
from typing import Any

import grpc
import pytest
from mlserver.grpc import dataplane_pb2 as pb

from client.local import LocalServer
from tests.support.clients import assert_sentence, body, image_file, stub, tensor

MEGABYTE = 2**20
GOOD = image_file("PNG")
PIXELS = [0, 128, 255] * 4


def array(shape: Any, data: Any = PIXELS, datatype: str = "UINT8") -> dict[str, Any]:
    return body(tensor(data, shape, datatype))


def png(width: int, height: int) -> bytes:
    """A header that promises so many pixels, and next to nothing after it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10 * MEGABYTE))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


JSON = {"Content-Type": "application/json"}


def refused(server: LocalServer, request: pb.ModelInferRequest) -> str:
    with pytest.raises(grpc.RpcError) as failure:
        stub(server).ModelInfer(request, timeout=60)
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT, failure.value.details()
    assert_sentence(failure.value.details())
    return failure.value.details()
