"""Requests and responses of the protocol in MLServer's types, which `predict` takes and returns."""

from typing import Any

import numpy as np
from mlserver.types import (
    InferenceRequest,
    InferenceResponse,
    Parameters,
    RequestInput,
    RequestOutput,
    ResponseOutput,
    TensorData,
)

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.protocol.base64_images import base64_error, decode_base64
from mlserver_timm.protocol.json_pixels import NOT_PIXELS
from mlserver_timm.protocol.request import (
    BYTES,
    CONTENT_TYPE,
    INTEGERS,
    InferRequest,
    InputTensor,
    Parameters as ProtocolParameters,
    TensorData as ProtocolData,
)
from mlserver_timm.protocol.response import ClassificationResponse, OutputTensor


def from_inference_request(payload: InferenceRequest) -> InferRequest:
    """Return a request that came through MLServer; raises InvalidRequest."""
    return InferRequest(
        inputs=[_input(tensor) for tensor in payload.inputs],
        outputs={output.name: _values(output.parameters) for output in payload.outputs or ()},
        parameters=_values(payload.parameters),
        id=payload.id,
    )


def to_inference_request(request: InferRequest) -> InferenceRequest:
    """Return the request as MLServer's data plane takes it."""
    return InferenceRequest.model_construct(
        id=request.id,
        parameters=_parameters(request.parameters),
        inputs=[
            RequestInput.model_construct(
                name=tensor.name,
                datatype=tensor.datatype,
                shape=list(tensor.shape),
                parameters=_parameters(tensor.parameters),
                data=TensorData.model_construct(root=tensor.data),
            )
            for tensor in request.inputs
        ],
        outputs=[
            RequestOutput.model_construct(name=name, parameters=_parameters(parameters))
            for name, parameters in request.outputs.items()
        ],
    )


def to_inference_response(response: ClassificationResponse) -> InferenceResponse:
    """Return the response as a model's `predict` does."""
    return InferenceResponse(
        model_name=response.model_name,
        model_version=response.model_version,
        id=response.id,
        outputs=[_output(output) for output in response.outputs],
    )


def from_inference_response(response: InferenceResponse) -> ClassificationResponse:
    """Return what a model's `predict` answered, to be encoded."""
    outputs = []
    for output in response.outputs:
        datatype, data = _datatype(output), output.data.root
        values = data if datatype == BYTES else np.array(data, np.float32)
        outputs.append(OutputTensor(output.name, datatype, tuple(output.shape), values))
    return ClassificationResponse(
        response.model_name, response.model_version, response.id, tuple(outputs)
    )


def _input(tensor: RequestInput) -> InputTensor:
    data = _data(_datatype(tensor), getattr(tensor.data, "root", tensor.data))
    parameters = _values(tensor.parameters)
    return InputTensor(tensor.name, _datatype(tensor), tensor.shape, data, parameters)


def _output(output: OutputTensor) -> ResponseOutput:
    data = output.data.ravel().tolist() if isinstance(output.data, np.ndarray) else output.data
    return ResponseOutput(
        name=output.name,
        datatype=output.datatype,
        shape=list(output.shape),
        data=data,
        parameters=Parameters(content_type=output.content_type),
    )


def _datatype(tensor: RequestInput | ResponseOutput) -> str:
    return str(getattr(tensor.datatype, "value", tensor.datatype))


def _data(datatype: str, data: Any) -> ProtocolData:
    """Return the data as the protocol's readers do, also from lists of numbers and base64 text."""
    if isinstance(data, np.ndarray):
        return data
    if datatype == BYTES and isinstance(data, list):
        return [_file(element) for element in data]
    try:
        return np.frombuffer(bytearray(data), np.uint8) if datatype in INTEGERS else []
    except (TypeError, ValueError):
        raise InvalidRequest(NOT_PIXELS) from None


def _file(element: Any) -> bytes:
    if isinstance(element, bytes):
        return element
    try:
        return decode_base64(element.encode())
    except (AttributeError, ValueError):
        raise base64_error(str(element).encode()) from None


def _parameters(values: ProtocolParameters) -> Parameters:
    """Return them without a check of `content_type`, which is made with the others, and without
    `headers`, which MLServer reserves."""
    others = {name: values[name] for name in values if name not in (CONTENT_TYPE, "headers")}
    parameters = Parameters.model_validate(others)
    parameters.content_type = values.get(CONTENT_TYPE)
    return parameters


def _values(parameters: Parameters | None) -> dict[str, Any]:
    return parameters.model_dump(exclude={"headers"}) if parameters else {}
