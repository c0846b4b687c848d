"""Requests that must be refused, and what a refusal looks like."""

from typing import Any

import grpc
import pytest
from mlserver.grpc import dataplane_pb2 as pb

from tests.support.clients import Server, assert_sentence, body, image_file, stub, tensor

MEGABYTE = 2**20
GOOD = image_file("PNG")
PIXELS = [0, 128, 255] * 4
JSON = {"Content-Type": "application/json"}


def array(shape: Any, data: Any = PIXELS, datatype: Any = "UINT8") -> dict[str, Any]:
    """Return a request with pixels."""
    return body(tensor(data, shape, datatype))


def refused(server: Server, request: pb.ModelInferRequest) -> str:
    """Assert that gRPC refuses the request as invalid, and return the sentence."""
    with pytest.raises(grpc.RpcError) as failure:
        stub(server).ModelInfer(request, timeout=60)
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT, failure.value.details()
    assert_sentence(failure.value.details())
    return failure.value.details()
