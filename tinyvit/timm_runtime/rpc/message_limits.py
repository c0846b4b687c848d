"""Bounds on a gRPC message of the Open Inference Protocol, before anything of it is parsed.

Protobuf makes 16 bytes and more in memory of an element that takes 2 in a message, and compression
makes a thousandth of them on the way. What is looked at here is the wire format itself
(https://protobuf.dev/programming-guides/encoding), and of it no more than the bounds allow.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import InvalidRequest

MAX_FIELDS = 20_000
"""Of a message and all that it holds; a packed list of numbers is one field."""

MAX_DIMENSIONS = 64
"""Bytes of a shape, of which each dimension takes 1 to 10."""

MAX_NUMBERS = 16 * 2**20
"""Bytes of a list of numbers in `contents`, where each takes 4 and more in memory."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""

MODEL_NAME, MODEL_VERSION, PARAMETERS, INPUTS, OUTPUTS, RAW_CONTENTS = 1, 2, 4, 5, 6, 7
"""Fields of ModelInferRequest."""

SHAPE, CONTENTS = 3, 5
"""Fields of InferInputTensor."""

BYTES_CONTENTS = 8
"""Of InferTensorContents; its other fields are lists of numbers."""


@dataclass(frozen=True)
class Field:
    """A field of a message, by places in it."""

    number: int
    wire_type: int
    tag: int
    """Where it begins, and its content at `start`."""
    start: int
    end: int


class Malformed(ValueError):
    """The bytes are no protobuf message."""


def addressed_model(message: bytes) -> tuple[str, str | None]:
    """Name and version in a ModelInferRequest or its beginning, where clients write them, else an
    empty name. Raises Malformed."""
    name, version = "", None
    try:
        for field in _Reader(message).fields(0, len(message)):
            if field.number == MODEL_NAME:
                name = message[field.start : field.end].decode(errors="replace")
            elif field.number == MODEL_VERSION:
                version = message[field.start : field.end].decode(errors="replace") or None
            else:
                break
    except Malformed:
        if not name:
            raise
    return name, version


def check_message(message: bytes) -> list[Field]:
    """The raw contents of a ModelInferRequest; raises InvalidRequest where it has more of anything
    than any request for images needs, and Malformed where it is none."""
    reader, raw_contents = _Reader(message), []
    for field in reader.fields(0, len(message)):
        if field.number == INPUTS:
            _check_input(reader, field)
        elif field.number in (PARAMETERS, OUTPUTS):
            reader.count(field)
        elif field.number == RAW_CONTENTS and field.wire_type == BYTES:
            raw_contents.append(field)
    return raw_contents


def _check_input(reader: "_Reader", tensor: Field) -> None:
    for field in reader.fields(tensor.start, tensor.end):
        size = field.end - field.start
        if field.number == SHAPE and size > MAX_DIMENSIONS:
            raise InvalidRequest("The shape of an input has too many dimensions.")
        if field.number == CONTENTS:
            _check_contents(reader, field)
        elif field.number == PARAMETERS:
            reader.count(field)


def _check_contents(reader: "_Reader", contents: Field) -> None:
    for field in reader.fields(contents.start, contents.end):
        if field.number != BYTES_CONTENTS and field.end - field.start > MAX_NUMBERS:
            raise InvalidRequest(
                f"The contents of an input have more than {MAX_NUMBERS} bytes of numbers; send as "
                f"many in 'raw_input_contents'."
            )


class _Reader:
    """Walks the fields of a message, and counts them."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._left = MAX_FIELDS

    def count(self, field: Field) -> None:
        """Counts all that a field holds."""
        for _ in self.fields(field.start, field.end):
            pass

    def fields(self, start: int, end: int) -> Iterator[Field]:
        while start < end:
            self._left -= 1
            if self._left < 0:
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
                raise Malformed("a field ends behind its message")
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
