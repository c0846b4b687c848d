"""ModelInferRequests of gRPC, read within limits and without a copy of their large fields.

Protobuf makes 16 bytes or more in memory of an element that takes 2 in a message. So the fields are
counted before protobuf parses anything, and it never parses the contents of tensors. For the wire
format see https://protobuf.dev/programming-guides/encoding.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlserver.grpc import dataplane_pb2 as pb
from mlserver.types import Datatype, InferenceRequest, TensorData

from mlserver_timm.errors import BodiesFull, InvalidRequest
from mlserver_timm.memory import return_to_system
from mlserver_timm.protocol.binary_tensors import read_tensor, read_varints
from mlserver_timm.protocol.request import INTEGERS

MAX_FIELDS = 20_000
"""Maximum number of fields in a message, nested ones included; a packed list is one field."""

MAX_DIMENSIONS = 64
"""Maximum size of a shape in bytes; a dimension takes 1 to 10."""

LARGE = 4 * 2**20
"""Size in bytes from which on a message leaves enough freed memory to return to the system."""

PAUSE = 0.5
"""Seconds without a large message until that memory is returned."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""

MODEL_NAME, MODEL_VERSION, PARAMETERS, INPUTS, OUTPUTS, RAW_CONTENTS = 1, 2, 4, 5, 6, 7
"""Fields of ModelInferRequest."""

SHAPE, TENSOR_PARAMETERS, CONTENTS = 3, 4, 5
"""Fields of InferInputTensor."""

INTEGER_CONTENTS, BYTES_CONTENTS = (2, 3, 4, 5), 8
"""Fields of InferTensorContents: int, int64, uint and uint64, and bytes."""

NO_VALUE = "The parameter '{}' has no value of a supported type: text, a whole number or a boolean."


class Malformed(ValueError):
    """The bytes are not a protobuf message."""


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
        """Yield the fields between two offsets; raises Malformed, or InvalidRequest after
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
                raise Malformed(f"wire type {wire_type}")
            if stop > end:
                raise Malformed("a field ends after its message")
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
        raise Malformed("a number without an end")


def requested_model(message: bytes) -> tuple[str, str | None]:
    """Return the model's name and version at the start of a ModelInferRequest, where clients write
    them, or an empty name; raises Malformed."""
    name, version = "", None
    try:
        for part in Reader(message).fields(0, len(message)):
            if part.number == MODEL_NAME:
                name = message[part.start : part.end].decode(errors="replace")
            elif part.number == MODEL_VERSION:
                version = message[part.start : part.end].decode(errors="replace") or None
            else:
                break
    except Malformed:
        if not name:
            raise
    return name, version


@dataclass
class Contents:
    """The `contents` of one tensor, in the message's own memory."""

    elements: list[memoryview] = field(default_factory=list)
    varints: list[memoryview] = field(default_factory=list)

    def data(self, datatype: str) -> Any:
        """Return files as bytes, or pixels as a flat uint8 array; an empty list for other types,
        which the protocol refuses. Raises InvalidRequest."""
        if datatype == Datatype.BYTES.value:
            return [bytes(element) for element in self.elements]
        if datatype in INTEGERS and self.varints:
            one = len(self.varints) == 1
            return read_varints(self.varints[0] if one else b"".join(self.varints))
        return []


@dataclass
class ReceivedMessage:
    """A message within the limits, parsed except for the contents of its tensors."""

    model_name: str
    model_version: str
    parsed: pb.ModelInferRequest
    contents: Sequence[Contents]
    """One for each input."""
    raw_input_contents: Sequence[memoryview]
    """In the message's own memory."""
    size: int
    """Bytes of the whole message."""

    def release(self) -> None:
        """Drop everything large: gRPC may keep the message of a refused call."""
        self.parsed, self.contents, self.raw_input_contents = pb.ModelInferRequest(), (), ()
        self.size = 0

    def put_data(self, request: InferenceRequest) -> None:
        """Set the data of the inputs of a request made from `parsed`: their own contents, or else
        the next raw contents. Raises InvalidRequest."""
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
    """Return the message; raises InvalidRequest beyond the limits, and Malformed or DecodeError if
    the bytes are not a ModelInferRequest."""
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
    """Raise InvalidRequest for values that protobuf ignores, such as doubles, which MLServer's
    messages do not have."""
    for owner in (message, *message.inputs, *message.outputs):
        for name, value in owner.parameters.items():
            if not value.WhichOneof("parameter_choice"):
                raise InvalidRequest(NO_VALUE.format(name[:40]))


class Context(Protocol):
    """gRPC's context of a call."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback(context)` at the end of the call."""
        ...


class HeldMessages:
    """Holds at most `max_bytes` of messages at once, each until its call ends or, in a stream, the
    next one arrives."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: dict[Context, ReceivedMessage] = {}
        self._returning: asyncio.TimerHandle | None = None

    def hold(self, context: Context, message: ReceivedMessage) -> None:
        """Count a message; raises BodiesFull."""
        if context not in self._held:
            context.add_done_callback(self._release)
        if message.size >= LARGE:
            context.add_done_callback(self._return_memory)
        self._held[context] = message
        if sum(each.size for each in self._held.values()) > self.max_bytes:
            message.release()
            raise BodiesFull(self.max_bytes)

    def _release(self, context: Context) -> None:
        self._held.pop(context).release()

    def _return_memory(self, context: Context) -> None:
        """Return memory on a thread, and once for calls that end together."""
        if self._returning:
            self._returning.cancel()
        loop = asyncio.get_running_loop()
        self._returning = loop.call_later(PAUSE, loop.run_in_executor, None, return_to_system)
