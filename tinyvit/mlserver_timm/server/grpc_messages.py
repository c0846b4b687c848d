"""ModelInferRequests of gRPC, read within bounds and without a copy of what is large in them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlserver.grpc import dataplane_pb2 as pb
from mlserver.types import Datatype, InferenceRequest, TensorData

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.protocol.binary_tensors import read_tensor, read_varints
from mlserver_timm.protocol.request import INTEGERS
from mlserver_timm.server.grpc_wire_format import BYTES, VARINT, Field, Reader

MAX_DIMENSIONS = 64
"""Bytes of a shape, of which each dimension takes 1 to 10."""

PARAMETERS, INPUTS, OUTPUTS, RAW_CONTENTS = 4, 5, 6, 7
"""Fields of ModelInferRequest."""

SHAPE, TENSOR_PARAMETERS, CONTENTS = 3, 4, 5
"""Fields of InferInputTensor."""

INTEGER_CONTENTS, BYTES_CONTENTS = (2, 3, 4, 5), 8
"""Fields of InferTensorContents: int, int64, uint and uint64, and bytes."""

NO_VALUE = "The parameter '{}' has no value that is understood: text, a whole number or a boolean."


@dataclass
class Contents:
    """What one tensor has in `contents`, in the message's own memory."""

    elements: list[memoryview] = field(default_factory=list)
    varints: list[memoryview] = field(default_factory=list)

    def data(self, datatype: str) -> Any:
        """As InferenceRequest has it: files as bytes, pixels as a flat uint8 array; nothing for
        another type, of which the codec says why it is refused. Raises InvalidRequest."""
        if datatype == Datatype.BYTES.value:
            return [bytes(element) for element in self.elements]
        if datatype in INTEGERS and self.varints:
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
        """Lets go of all that is large: gRPC may keep what a refused call was about."""
        self.parsed, self.contents, self.raw_input_contents = pb.ModelInferRequest(), (), ()
        self.size = 0

    def put_data(self, request: InferenceRequest) -> None:
        """Gives the inputs of a request made from `parsed` their data: their own, or else the next
        of the raw contents. Raises InvalidRequest."""
        raw = list(self.raw_input_contents)
        for tensor, contents in zip(request.inputs, self.contents, strict=True):
            datatype = getattr(tensor.datatype, "value", tensor.datatype)
            data = contents.data(datatype)
            if raw and not len(data):
                data = read_tensor(raw.pop(0), datatype, tensor.shape)
            tensor.data = TensorData.model_construct(root=data)
        if raw:
            raise InvalidRequest(
                f"There are {len(self.raw_input_contents)} 'raw_input_contents', more than inputs "
                f"without 'contents'."
            )


def read_message(message: bytes) -> ReceivedMessage:
    """Raises InvalidRequest beyond the bounds, and Malformed or DecodeError where it is none."""
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
    _check_parameters(parsed)
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


def _check_parameters(message: pb.ModelInferRequest) -> None:
    """Protobuf passes over values of types that MLServer's messages do not have, as doubles."""
    for owner in (message, *message.inputs, *message.outputs):
        for name, value in owner.parameters.items():
            if not value.WhichOneof("parameter_choice"):
                raise InvalidRequest(NO_VALUE.format(name[:40]))
