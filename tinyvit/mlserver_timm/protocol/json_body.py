"""Bodies of /infer, in JSON and with binary tensors, to MLServer's InferenceRequest.

Everything is bounded and checked here: of a body that is wrong in a million places, pydantic would
describe each before the first is told.
"""

from typing import Any

import numpy as np
from mlserver.types import (
    Datatype,
    InferenceRequest,
    Parameters,
    RequestInput,
    RequestOutput,
    TensorData,
)

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.protocol.binary_tensors import read_tensor
from mlserver_timm.protocol.json_reader import NumberText, list_pixels, read_json
from mlserver_timm.protocol.request import FUNCTION, INTEGERS, TOP_K, check_names

MAX_INPUTS = MAX_OUTPUTS = 16
MAX_DIMENSIONS = 8
MAX_PARAMETERS = 64
MAX_NAME = 256
"""Characters of a name, a datatype or an id."""

BINARY_SIZE = "binary_data_size"
BINARY_OUTPUT, BINARY_OUTPUTS = "binary_data", "binary_data_output"
"""Parameters of the binary tensor data extension: of an input, an output and a request."""

HEADER_LENGTH = "Inference-Header-Content-Length"
NO_OBJECT = "The body must be a JSON object, with Content-Type: application/json."


def read_request(
    body: bytes, content_type: str | None = None, header_length: str | None = None
) -> InferenceRequest:
    """The request in a body, of which the first `header_length` bytes are JSON, and binary tensors
    follow; or all of it is JSON. Both arguments are headers, None where they are not there.

    Pixels become a flat uint8 array, in the body's own memory where they came as such; files stay
    base64 text, or bytes. Raises InvalidRequest.
    """
    length = _header_length(header_length, body)
    if length is None and not _is_json(content_type):
        raise InvalidRequest(NO_OBJECT)
    content = read_json(body, length)
    if not isinstance(content, dict):
        raise InvalidRequest(NO_OBJECT)
    check_no_parameters(content)
    tensors = _BinaryTensors(body, length)
    inputs = _items(content, "inputs", MAX_INPUTS)
    if inputs is None:
        raise _invalid("inputs", "Field required")
    outputs = _items(content, "outputs", MAX_OUTPUTS)
    request = InferenceRequest.model_construct(
        id=_text(content.get("id"), "id", optional=True),
        parameters=read_parameters(content, "parameters"),
        inputs=[_input(one, f"inputs.{i}", tensors) for i, one in enumerate(inputs)],
        outputs=outputs and [_output(one, f"outputs.{i}") for i, one in enumerate(outputs)],
    )
    tensors.check_all_taken()
    return request


def _header_length(text: str | None, body: bytes) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 12 and 0 < int(text) <= len(body)):
        raise InvalidRequest(
            f"The header {HEADER_LENGTH} must be the length of the JSON at the beginning of the "
            f"body, from 1 to the body's {len(body)} bytes."
        )
    return int(text)


def _is_json(content_type: str | None) -> bool:
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


def _invalid(where: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"The request is not valid: {where}: {what}.")


def _items(content: dict[str, Any], key: str, most: int) -> list[Any] | None:
    items = content.get(key)
    if items is None and key not in content:
        return None
    if not isinstance(items, list):
        if items is None and key == "outputs":
            return None
        raise _invalid(key, "Input should be a list of JSON objects")
    if len(items) > most:
        raise _invalid(key, f"There are {len(items)} of them; at most {most} are accepted")
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            raise _invalid(f"{key}.{i}", "Input should be a JSON object")
    return items


def _text(value: Any, where: str, optional: bool = False) -> Any:
    if value is None and optional:
        return None
    if not isinstance(value, str):
        raise _invalid(where, "Input should be text" if value is not None else "Field required")
    if len(value) > MAX_NAME:
        raise _invalid(where, f"Input should have at most {MAX_NAME} characters")
    return value


def check_no_parameters(content: dict[str, Any]) -> None:
    """Raises InvalidRequest where one of ours stands beside 'parameters' in place of in it."""
    for name in (TOP_K, FUNCTION):
        if name in content:
            raise InvalidRequest(f"'{name}' belongs into the request's 'parameters'.")
    check_names(content)


def read_parameters(content: dict[str, Any], where: str) -> Parameters | None:
    values = content.get("parameters")
    if values is None:
        return None
    if not isinstance(values, dict):
        raise _invalid(where, "Input should be a JSON object")
    if len(values) > MAX_PARAMETERS:
        raise _invalid(where, f"There are {len(values)}; at most {MAX_PARAMETERS} are accepted")
    # MLServer puts the request's own headers in their place.
    values = {name: value for name, value in values.items() if name != "headers"}
    _text(values.get("content_type"), f"{where}.content_type", optional=True)
    for name, value in values.items():
        if value is None:
            continue
        if name in (BINARY_OUTPUT, BINARY_OUTPUTS) and not isinstance(value, bool):
            raise _invalid(f"{where}.{name}", "Input should be true or false")
        if not isinstance(value, (bool, int, float, str)):
            what = "Input should be text, a number or a boolean"
            raise _invalid(f"{where}.{name[:40]}", what)
    return Parameters.model_validate(values)


def _output(content: dict[str, Any], where: str) -> RequestOutput:
    return RequestOutput.model_construct(
        name=_text(content.get("name"), f"{where}.name"),
        parameters=read_parameters(content, f"{where}.parameters"),
    )


def _input(content: dict[str, Any], where: str, tensors: "_BinaryTensors") -> RequestInput:
    parameters = read_parameters(content, f"{where}.parameters")
    datatype = _text(content.get("datatype"), f"{where}.datatype")
    if datatype not in Datatype.__members__:
        known = ", ".join(Datatype.__members__)
        raise _invalid(f"{where}.datatype", f"Input should be one of {known}")
    shape = _shape(content.get("shape"), f"{where}.shape")
    return RequestInput.model_construct(
        name=_text(content.get("name"), f"{where}.name"),
        shape=shape,
        datatype=datatype,
        parameters=parameters,
        data=TensorData.model_construct(root=_data(content, where, datatype, shape, tensors)),
    )


def _data(
    content: dict[str, Any],
    where: str,
    datatype: str,
    shape: list[int],
    tensors: "_BinaryTensors",
) -> Any:
    parameters = content.get("parameters") or {}
    size = parameters.get(BINARY_SIZE)
    if "shared_memory_region" in parameters:
        raise _invalid(where, "Shared memory is not understood here; send the data")
    if "data" not in content:
        if size is None:
            raise _invalid(f"{where}.data", "Field required")
        return tensors.take(size, datatype, shape, where)
    if size is not None and tensors.expected:
        raise _invalid(where, f"It has both 'data' and '{BINARY_SIZE}'")
    return _json_data(content["data"], datatype, shape)


def _shape(value: Any, where: str) -> list[int]:
    if value is None:
        raise _invalid(where, "Field required")
    if isinstance(value, NumberText) or isinstance(value, list) and len(value) > MAX_DIMENSIONS:
        raise _invalid(where, f"At most {MAX_DIMENSIONS} dimensions are accepted")
    if not isinstance(value, list) or not all(type(size) is int for size in value):
        raise _invalid(where, "Input should be a list of whole numbers")
    return value


def _json_data(data: Any, datatype: str, shape: list[int]) -> Any:
    if datatype in INTEGERS and isinstance(data, NumberText):
        return _array(data.pixels(shape))
    if datatype in INTEGERS and isinstance(data, list):
        return _array(list_pixels(data, shape))
    if datatype == Datatype.BYTES.value and len(shape) == 2:
        return _unnested(data)
    return [None] if isinstance(data, NumberText) else data


def _unnested(data: Any) -> Any:
    """`[[x], [y]]`, as a shape [2,1] may be written, in one list."""
    rows = isinstance(data, list) and all(isinstance(row, list) and len(row) == 1 for row in data)
    return [row[0] for row in data] if rows else data


def _array(values: bytearray) -> np.ndarray:
    return np.frombuffer(values, np.uint8)


class _BinaryTensors:
    """What follows the JSON in a body: the tensors, one after the other."""

    def __init__(self, body: bytes, header_length: int | None) -> None:
        self.expected = header_length is not None
        self._body = memoryview(body)
        self._at = len(body) if header_length is None else header_length

    def take(self, size: Any, datatype: str, shape: list[int], where: str) -> Any:
        """The data of the next `size` bytes."""
        left = len(self._body) - self._at
        if type(size) is not int or not 0 <= size <= left:
            raise _invalid(
                f"{where}.parameters.{BINARY_SIZE}",
                f"Input should be a number of bytes from 0 to the {left} that are left in the "
                f"body after the JSON, whose length the header {HEADER_LENGTH} tells",
            )
        start = self._at
        self._at += size
        return read_tensor(self._body[start : self._at], datatype, shape)

    def check_all_taken(self) -> None:
        """Raises InvalidRequest where bytes are left."""
        left = len(self._body) - self._at
        if left:
            raise InvalidRequest(
                f"The body has {left} bytes more than its JSON and the '{BINARY_SIZE}' of its "
                f"inputs tell."
            )
