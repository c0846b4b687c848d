"""ModelInferRequests of gRPC, read within limits and without a copy of their large fields.

Protobuf makes 16 bytes or more in memory of an element that takes 2 in a message. So the fields are
counted before protobuf parses anything, and it never parses the contents of tensors. For the wire
format see https://protobuf.dev/programming-guides/encoding.
"""

import contextlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from mlserver.grpc import dataplane_pb2 as pb

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.protocol.binary_tensors import read_tensor, read_varints
from mlserver_timm.protocol.request import (
    BYTES as BYTES_TYPE,
    INTEGERS,
    InferRequest,
    InputTensor,
    Parameters,
    TensorData,
)
from mlserver_timm.protocol.response import CONTENT_TYPES, ClassificationResponse, tensor_bytes

MAX_FIELDS = 20_000
"""Maximum number of fields in a message, nested ones included; a packed list is one field."""

MAX_SHAPE_BYTES = 64
"""Maximum size of a shape in a message, in bytes; a dimension takes 1 to 10."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""

MODEL_NAME, MODEL_VERSION, PARAMETERS, INPUTS, OUTPUTS, RAW_CONTENTS = 1, 2, 4, 5, 6, 7
"""Fields of ModelInferRequest."""

SHAPE, TENSOR_PARAMETERS, CONTENTS = 3, 4, 5
"""Fields of InferInputTensor."""

INTEGER_CONTENTS, BYTES_CONTENTS = (2, 3, 4, 5), 8
"""Fields of InferTensorContents: int, int64, uint and uint64, and bytes."""

DOUBLE_PARAM, UINT64_PARAM = 4, 5
"""Fields of InferParameter since 2023, which MLServer 1.7.1's messages do not have."""

NO_VALUE = "The parameter '{}' has no value of a supported type: send text, a number or a boolean."


@dataclass(frozen=True)
class Field:
    """A field of a message, by its offsets: the tag begins at `tag`, the content at `start`."""

    number: int
    wire_type: int
    tag: int
    start: int
    end: int


class Reader:
    """Walks the fields of a message and counts them."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._remaining = MAX_FIELDS

    def count(self, parent: Field) -> None:
        """Count the fields within a field."""
        for _ in self.fields(parent.start, parent.end):
            pass

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Yield the fields between two offsets; raises DecodeError, or InvalidRequest after
        MAX_FIELDS."""
        while start < end:
            self._remaining -= 1
            if self._remaining < 0:
                raise InvalidRequest(f"The message has more than {MAX_FIELDS} fields.")
            begin = start
            tag, start = self._varint(start, end)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == BYTES:
                size, start = self._varint(start, end)
                stop = start + size
            elif wire_type == VARINT:
                stop = self._varint(start, end)[1]
            elif wire_type in (FIXED64, FIXED32):
                stop = start + (8 if wire_type == FIXED64 else 4)
            else:
                raise DecodeError(f"wire type {wire_type}")
            if stop > end:
                raise DecodeError("a field ends after its message")
            yield Field(number, wire_type, begin, start, stop)
            start = stop

    def _varint(self, start: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if start >= end:
                break
            byte = self._message[start]
            start += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, start
        raise DecodeError("a number without an end")


def requested_model(message: bytes) -> tuple[str, str | None]:
    """Return the model's name and version at the start of a ModelInferRequest, where clients write
    them, or an empty name."""
    name, version = "", None
    with contextlib.suppress(DecodeError):
        for part in Reader(message).fields(0, len(message)):
            if part.number == MODEL_NAME:
                name = message[part.start : part.end].decode(errors="replace")
            elif part.number == MODEL_VERSION:
                version = message[part.start : part.end].decode(errors="replace") or None
            else:
                break
    return name, version


@dataclass
class ReceivedMessage:
    """A message within the limits."""

    model_name: str
    model_version: str
    request: InferRequest
    has_raw_contents: bool
    size: int
    """Bytes of the whole message."""


def read_message(message: bytes) -> ReceivedMessage:
    """Return the message; raises InvalidRequest beyond the limits, and DecodeError if the
    bytes are not a ModelInferRequest.

    A tensor has its data in `contents`, or else in the next of `raw_input_contents`. UINT8 pixels
    in the latter stay in the message's own memory.
    """
    reader, view = Reader(message), memoryview(message)
    rest, raw, inputs = [], [], []
    for part in reader.fields(0, len(message)):
        if part.number == INPUTS and part.wire_type == BYTES:
            inputs.append(_read_input(reader, view, part))
        elif part.number == RAW_CONTENTS and part.wire_type == BYTES:
            raw.append(view[part.start : part.end])
        else:
            if part.number in (PARAMETERS, OUTPUTS):
                reader.count(part)
            rest.append(view[part.tag : part.end])
    others = iter(raw)
    for i, tensor in enumerate(inputs):
        if not len(tensor.data) and (content := next(others, None)) is not None:
            data = read_tensor(content, tensor.datatype, tensor.shape)
            inputs[i] = replace(tensor, data=data)
    if next(others, None) is not None:
        raise InvalidRequest(
            f"There are {len(raw)} 'raw_input_contents', more than inputs without 'contents'."
        )
    parsed = pb.ModelInferRequest.FromString(b"".join(rest))
    outputs: dict[str, Parameters] = {each.name: {} for each in parsed.outputs}
    request = InferRequest(inputs, outputs, _parameters(parsed.parameters), parsed.id or None)
    name, version = parsed.model_name, parsed.model_version
    return ReceivedMessage(name, version, request, bool(raw), len(message))


def response_message(response: ClassificationResponse, raw: bool) -> pb.ModelInferResponse:
    """Return the message of a response, with raw contents if `raw`."""
    message = pb.ModelInferResponse(
        model_name=response.model_name,
        model_version=response.model_version or "",
        id=response.id or "",
    )
    for output in response.outputs:
        tensor = message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        tensor.parameters["content_type"].string_param = CONTENT_TYPES[output.datatype]
        if raw:
            message.raw_output_contents.append(tensor_bytes(output.data))
        elif isinstance(output.data, list):
            tensor.contents.bytes_contents.extend(label.encode() for label in output.data)
        else:
            tensor.contents.fp32_contents.extend(output.data.ravel())
    return message


def _read_input(reader: Reader, view: memoryview, whole: Field) -> InputTensor:
    rest, elements, varints, shape = [], [], [], 0
    for part in reader.fields(whole.start, whole.end):
        if part.number == CONTENTS and part.wire_type == BYTES:
            for each in reader.fields(part.start, part.end):
                if each.number == BYTES_CONTENTS and each.wire_type == BYTES:
                    elements.append(view[each.start : each.end])
                elif each.number in INTEGER_CONTENTS and each.wire_type in (BYTES, VARINT):
                    varints.append(view[each.start : each.end])
            continue
        if part.number == SHAPE:
            shape += part.end - part.start
            if shape > MAX_SHAPE_BYTES:
                raise InvalidRequest(
                    f"The shape of an input takes more than {MAX_SHAPE_BYTES} bytes: send at most "
                    f"the four dimensions [N,H,W,C]."
                )
        elif part.number == TENSOR_PARAMETERS:
            reader.count(part)
        rest.append(view[part.tag : part.end])
    tensor = pb.ModelInferRequest.InferInputTensor.FromString(b"".join(rest))
    data: TensorData = []
    if tensor.datatype == BYTES_TYPE:
        data = [bytes(element) for element in elements]
    elif tensor.datatype in INTEGERS:
        data = read_varints(varints[0] if len(varints) == 1 else b"".join(varints))
    parameters = _parameters(tensor.parameters)
    return InputTensor(tensor.name, tensor.datatype, list(tensor.shape), data, parameters)


def _parameters(values: Mapping[str, pb.InferParameter]) -> Parameters:
    return {name: _value(name, value) for name, value in values.items()}


def _value(name: str, parameter: pb.InferParameter) -> str | int | float | bool:
    choice = parameter.WhichOneof("parameter_choice")
    if choice:
        return _whole(getattr(parameter, choice))
    for unknown in UnknownFieldSet(parameter):
        if (unknown.field_number, unknown.wire_type) == (UINT64_PARAM, VARINT):
            return unknown.data
        if (unknown.field_number, unknown.wire_type) == (DOUBLE_PARAM, FIXED64):
            return _whole(struct.unpack("<d", struct.pack("<Q", unknown.data))[0])
    raise InvalidRequest(NO_VALUE.format(name[:40]))


def _whole(value: str | int | float | bool) -> str | int | float | bool:
    """Return an integer for 3.0: Python's clients send every float as a double."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
