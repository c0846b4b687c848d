"""Requests and responses in MLServer's types, for callers of `predict` that have only these."""

from typing import Any

import numpy as np
from mlserver.types import (
    InferenceRequest,
    InferenceResponse,
    Parameters,
    RequestInput,
    ResponseOutput,
)

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.protocol.base64_images import base64_error, decode_base64
from mlserver_timm.protocol.json_pixels import NOT_PIXELS
from mlserver_timm.protocol.request import (
    BYTES,
    INTEGERS,
    InferRequest,
    InputTensor,
    TensorData as ProtocolData,
    unwrap_files,
)
from mlserver_timm.protocol.response import CONTENT_TYPES, ClassificationResponse, OutputTensor


def from_inference_request(payload: InferenceRequest) -> InferRequest:
    """Return a request that came through MLServer; raises InvalidRequest or InvalidImage."""
    request = InferRequest(
        inputs=[_input(tensor) for tensor in payload.inputs],
        outputs={output.name: _values(output.parameters) for output in payload.outputs or ()},
        parameters=_values(payload.parameters),
        id=payload.id,
    )
    return unwrap_files(request)


def to_inference_response(response: ClassificationResponse) -> InferenceResponse:
    """Return the response as a model's `predict` does."""
    return InferenceResponse(
        model_name=response.model_name,
        model_version=response.model_version,
        id=response.id,
        outputs=[_output(output) for output in response.outputs],
    )


def _input(tensor: RequestInput) -> InputTensor:
    data = _data(_datatype(tensor), getattr(tensor.data, "root", tensor.data))
    parameters = _values(tensor.parameters)
    return InputTensor(tensor.name, _datatype(tensor), tensor.shape, data, parameters)


def _output(output: OutputTensor) -> ResponseOutput:
    if isinstance(output.data, np.ndarray):
        data = output.data.ravel().tolist()
    else:
        data = [label.encode() for label in output.data]
    return ResponseOutput(
        name=output.name,
        datatype=output.datatype,
        shape=list(output.shape),
        data=data,
        parameters=Parameters(content_type=CONTENT_TYPES[output.datatype]),
    )


def _datatype(tensor: RequestInput | ResponseOutput) -> str:
    return str(getattr(tensor.datatype, "value", tensor.datatype))


def _data(datatype: str, data: Any) -> ProtocolData:
    """Return the data as the protocol's readers do, also from lists of numbers and base64 text."""
    if isinstance(data, np.ndarray):
        return data
    if datatype == BYTES and isinstance(data, list):
        return [_file(element) for element in data]
    if datatype not in INTEGERS:
        return []
    if not isinstance(data, list) or not all(type(v) is int and 0 <= v <= 255 for v in data):
        raise InvalidRequest(NOT_PIXELS)
    return np.frombuffer(bytearray(data), np.uint8)


def _file(element: Any) -> bytes:
    if isinstance(element, bytes):
        return element
    try:
        return decode_base64(element.encode())
    except (AttributeError, ValueError):
        raise base64_error(str(element).encode()) from None


def _values(parameters: Parameters | None) -> dict[str, Any]:
    return parameters.model_dump(exclude={"headers"}) if parameters else {}
