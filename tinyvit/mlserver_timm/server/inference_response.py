"""InferenceResponses to bodies, in JSON and with binary tensors."""

import struct
from typing import Any

import numpy as np
from mlserver.codecs.json import encode_to_json_bytes
from mlserver.types import Datatype, InferenceRequest, InferenceResponse, Parameters, ResponseOutput
from starlette.responses import Response

from mlserver_timm.protocol.json_body import (
    BINARY_OUTPUT,
    BINARY_OUTPUTS,
    BINARY_SIZE,
    HEADER_LENGTH,
)

FLOATS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
"""Binary tensors are little-endian."""


def encode(request: InferenceRequest, response: InferenceResponse) -> Response:
    """The response as MLServer writes it, but with those outputs in binary that the request asks
    for so, in their order, after the JSON."""
    binary = _Binary(request)
    outputs: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for output in response.outputs:
        datatype = getattr(output.datatype, "value", output.datatype)
        described = {"name": output.name, "shape": output.shape, "datatype": datatype}
        parameters = _values(output.parameters)
        if binary.wanted(output.name):
            tensors.append(_bytes(output, datatype))
            described["parameters"] = {**(parameters or {}), BINARY_SIZE: len(tensors[-1])}
        else:
            if parameters is not None:
                described["parameters"] = parameters
            described["data"] = output.data.root
        outputs.append(described)
    content = {
        "model_name": response.model_name,
        "model_version": response.model_version,
        "id": response.id,
        "parameters": _values(response.parameters),
    }
    content = {name: value for name, value in content.items() if value is not None}
    header = encode_to_json_bytes({**content, "outputs": outputs})
    if not tensors:
        return Response(header, media_type="application/json")
    return Response(
        b"".join([header, *tensors]),
        media_type="application/octet-stream",
        headers={HEADER_LENGTH: str(len(header))},
    )


class _Binary:
    """Which outputs a request asks for in binary."""

    def __init__(self, request: InferenceRequest) -> None:
        self._all = bool(getattr(request.parameters, BINARY_OUTPUTS, False))
        self._each = {
            output.name: bool(getattr(output.parameters, BINARY_OUTPUT))
            for output in request.outputs or ()
            if hasattr(output.parameters, BINARY_OUTPUT)
        }

    def wanted(self, name: str) -> bool:
        return self._each.get(name, self._all)


def _values(parameters: Parameters | None) -> dict[str, Any] | None:
    return None if parameters is None else parameters.model_dump()


def _bytes(output: ResponseOutput, datatype: str) -> bytes:
    if datatype == Datatype.BYTES.value:
        return b"".join(struct.pack("<I", len(element)) + element for element in output.data.root)
    return np.asarray(output.data.root, FLOATS[datatype]).tobytes()
