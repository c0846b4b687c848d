"""The wire format of protobuf (https://protobuf.dev/programming-guides/encoding), within bounds.

Protobuf makes 16 bytes and more in memory of an element that takes 2 in a message; so fields are
counted before anything of a message is parsed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mlserver_timm.errors import InvalidRequest

MAX_FIELDS = 20_000
"""Of a message and all that it holds; a packed list of numbers is one field."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""

MODEL_NAME, MODEL_VERSION = 1, 2
"""Fields of ModelInferRequest."""


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
        for field in Reader(message).fields(0, len(message)):
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


class Reader:
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
