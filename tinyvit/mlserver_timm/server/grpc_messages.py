"""ModelInferRequests of gRPC, read within bounds and without a copy of what is large in them."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
from mlserver_timm.server.grpc_wire_format import BYTES, FIXED64, VARINT, Field, Reader

MAX_DIMENSIONS = 64
"""Bytes of a shape, of which each dimension takes 1 to 10."""

PARAMETERS, INPUTS, OUTPUTS, RAW_CONTENTS = 4, 5, 6, 7
"""Fields of ModelInferRequest."""

SHAPE, TENSOR_PARAMETERS, CONTENTS = 3, 4, 5
"""Fields of InferInputTensor."""

INTEGER_CONTENTS, BYTES_CONTENTS = (2, 3, 4, 5), 8
"""Fields of InferTensorContents: int, int64, uint and uint64, and bytes."""

DOUBLE_PARAM, UINT64_PARAM = 4, 5
"""Fields of InferParameter since 2023, which MLServer 1.7.1's messages do not have."""

NO_VALUE = "The parameter '{}' has no value that is understood: text, a number or a boolean."


@dataclass
class Contents:
    """What one tensor has in `contents`, in the message's own memory."""

    elements: list[memoryview] = field(default_factory=list)
    varints: list[memoryview] = field(default_factory=list)

    def data(self, datatype: str) -> TensorData:
        """Return the elements of BYTES, the numbers of an integer type as flat uint8, else nothing.

        Raises InvalidRequest.
        """
        if datatype == BYTES_TYPE:
            return [bytes(element) for element in self.elements]
        if datatype in INTEGERS:
            one = len(self.varints) == 1
            return read_varints(self.varints[0] if one else b"".join(self.varints))
        return []


@dataclass
class ReceivedMessage:
    """A message within the bounds, parsed but for the contents of its tensors."""

    model_name: str
    model_version: str
    parsed: pb.ModelInferRequest
    contents: Sequence[Contents]
    """One an input."""
    raw_input_contents: Sequence[memoryview]
    """In the message's own memory."""
    size: int
    """Bytes of the whole message."""

    def release(self) -> None:
        """Release everything large: gRPC may keep the message of a refused call."""
        self.parsed, self.contents, self.raw_input_contents = pb.ModelInferRequest(), (), ()
        self.size = 0

    def infer_request(self) -> InferRequest:
        """Return the request in the message; raises InvalidRequest.

        A tensor has its data in `contents`, or else in the next of `raw_input_contents`.
        """
        raw = list(self.raw_input_contents)
        inputs = []
        for tensor, contents in zip(self.parsed.inputs, self.contents, strict=True):
            shape = list(tensor.shape)
            data = contents.data(tensor.datatype)
            if raw and not len(data):
                data = read_tensor(raw.pop(0), tensor.datatype, shape)
            parameters = _parameters(tensor.parameters)
            inputs.append(InputTensor(tensor.name, tensor.datatype, shape, data, parameters))
        if raw:
            raise InvalidRequest(
                f"There are {len(self.raw_input_contents)} 'raw_input_contents', more than inputs "
                f"without 'contents'."
            )
        outputs: dict[str, Parameters] = {each.name: {} for each in self.parsed.outputs}
        parameters = _parameters(self.parsed.parameters)
        return InferRequest(inputs, outputs, parameters, self.parsed.id or None)


def read_message(message: bytes) -> ReceivedMessage:
    """Return a message whose contents are not copied.

    Raises InvalidRequest beyond the bounds, and Malformed or DecodeError where the bytes are not a
    ModelInferRequest.
    """
    reader, view = Reader(message), memoryview(message)
    rest, raw, tensors, contents = [], [], [], []
    for part in reader.fields(0, len(message)):
        if part.number == INPUTS and part.wire_type == BYTES:
            tensor, content = _read_input(reader, view, part)
            tensors.append(tensor)
            contents.append(content)
        elif part.number == RAW_CONTENTS and part.wire_type == BYTES:
            raw.append(view[part.start : part.end])
        else:
            if part.number in (PARAMETERS, OUTPUTS):
                reader.count(part)
            rest.append(view[part.tag : part.end])
    parsed = pb.ModelInferRequest.FromString(b"".join(rest))
    parsed.inputs.extend(tensors)
    name, version = parsed.model_name, parsed.model_version
    return ReceivedMessage(name, version, parsed, contents, raw, len(message))


def _read_input(
    reader: Reader, view: memoryview, tensor: Field
) -> tuple[pb.ModelInferRequest.InferInputTensor, Contents]:
    rest, contents, shape = [], Contents(), 0
    for part in reader.fields(tensor.start, tensor.end):
        if part.number == CONTENTS and part.wire_type == BYTES:
            _add_contents(contents, reader, view, part)
            continue
        if part.number == SHAPE:
            shape += part.end - part.start
            if shape > MAX_DIMENSIONS:
                raise InvalidRequest("The shape of an input has too many dimensions.")
        elif part.number == TENSOR_PARAMETERS:
            reader.count(part)
        rest.append(view[part.tag : part.end])
    return pb.ModelInferRequest.InferInputTensor.FromString(b"".join(rest)), contents


def _add_contents(contents: Contents, reader: Reader, view: memoryview, whole: Field) -> None:
    for part in reader.fields(whole.start, whole.end):
        if part.number == BYTES_CONTENTS and part.wire_type == BYTES:
            contents.elements.append(view[part.start : part.end])
        elif part.number in INTEGER_CONTENTS and part.wire_type in (BYTES, VARINT):
            contents.varints.append(view[part.start : part.end])


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
