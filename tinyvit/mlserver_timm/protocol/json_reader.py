"""JSON bodies of any size, read in bounded memory and without holding up the server.

What makes a body large, arrays of numbers and long strings, is cut out first. What remains must be
short, so that parsing it is cheap whatever it holds; the numbers are parsed a slice at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from mlserver_timm.errors import InvalidRequest

MAX_STRUCTURE_BYTES = 256 * 2**10
"""Of a body without its long arrays and its strings of one byte a character, as base64 is. Parsed,
the worst of that size takes 20 MB."""

MAX_DEPTH = 16
"""Objects and lists within each other; an array `[N,H,W,C]` that is nested as its shape needs 7."""

LONG = 1024
"""Bytes from which an array or a string is cut out."""

MAX_ESCAPES = 4096
"""Escaped quotation marks and backslashes before quotation marks, each of which costs a step of
Python; base64 and labels have none."""

SLICE_BYTES = 32 * 2**10
"""Of numbers parsed at once: a millisecond at most, after which others may run."""

NOT_JSON = "The body is not valid JSON."
NOT_PIXELS = "Pixels must be whole numbers from 0 to 255, nested as the shape says or in one list."
TOO_DEEP = f"The request is nested more than {MAX_DEPTH} levels deep."
TOO_MUCH = (
    f"The request holds too many parts: without its pixels and files it may have at most "
    f"{MAX_STRUCTURE_BYTES} bytes."
)

CUT = "\0cut "
"""Begins what stands in the place of a cut. Whoever writes it himself gets what he has sent."""

ASCII_SLICE = 2**20
"""Bytes that are looked at in one piece."""

QUOTE, BACKSLASH = b'"', ord("\\")
NUMBERS = b"0123456789 \t\r\n"


@dataclass(frozen=True)
class NumberText:
    """An array of numbers, nested or not, that is still text: `body[start:end]`."""

    body: bytes = field(repr=False)
    start: int
    end: int

    def pixels(self, shape: list[int]) -> bytearray:
        """One byte a number; raises InvalidRequest unless all are whole numbers from 0 to 255, in
        one list or nested as `shape` says."""
        start, end = self.start + 1, self.end - 1
        nested = self.body.find(b"[", start, end) >= 0
        values, structure = bytearray(), bytearray(b"[")
        for text in _slices(self.body, start, end):
            if b"e" in text:  # true and false, which Python takes for 1 and 0
                raise InvalidRequest(NOT_PIXELS)
            if nested:
                structure += text.translate(None, NUMBERS) + b","
            flat = text.translate(None, b"[]") if nested else text
            values += _bytes(_parsed(b"[%b]" % flat))
        if nested and not _is_nested(bytes(structure[:-1] + b"]"), shape):
            raise InvalidRequest(NOT_PIXELS)
        return values


def read_json(body: bytes, end: int | None = None) -> Any:
    """What `body[:end]` says, long arrays of numbers as NumberText.

    Raises InvalidRequest for what is no JSON, or too deep, or has too many parts. It is a matter of
    microseconds, but for 64 MB of text, and of milliseconds then.
    """
    return _Cutter(body, len(body) if end is None else end).read()


class _Cutter:
    def __init__(self, body: bytes, end: int) -> None:
        self._body = body
        self._end = end
        self._cuts: dict[str, Any] = {}
        self._escapes = 0
        self._wide = 0  # bytes of long strings that are not base64

    def read(self) -> Any:
        structure = self._structure() if self._end > LONG else self._body[: self._end]
        parsed = _parsed(structure)
        if self._cuts or structure.count(b"[") + structure.count(b"{") > MAX_DEPTH:
            return self._restored(parsed, MAX_DEPTH)
        return parsed

    def _structure(self) -> bytes:
        body, end = self._body, self._end
        structure = bytearray()
        at = 0
        while at < end:
            opening = body.find(QUOTE, at, end)
            if opening < 0:
                opening = end
            if opening - at < LONG:
                structure += body[at:opening]
            else:
                self._add_without_array(structure, at, opening)
            if opening == end:
                break
            at = self._after_string(opening)
            if at - opening < LONG:
                structure += body[opening:at]
            else:
                structure += self._cut(self._text(opening, at))
            if len(structure) > MAX_STRUCTURE_BYTES:
                break
        if len(structure) > MAX_STRUCTURE_BYTES:
            raise InvalidRequest(TOO_MUCH)
        return bytes(structure)

    def _after_string(self, opening: int) -> int:
        """Where the string that opens there has ended."""
        body, end = self._body, self._end
        at = opening + 1
        while True:
            quote = body.find(QUOTE, at, end)
            if quote < 0:
                raise InvalidRequest(NOT_JSON)
            before = quote - 1
            while before > opening and body[before] == BACKSLASH:
                before -= 1
                self._escapes += 1
                if self._escapes > MAX_ESCAPES:
                    raise InvalidRequest(TOO_MUCH)
            if (quote - before) % 2:
                return quote + 1
            at = quote + 1

    def _text(self, start: int, end: int) -> str:
        """A long string. Without escapes it is taken as it stands, in a tenth of the time, control
        characters included, which only base64 could hold and may."""
        if not self._is_one_byte_each(start, end):
            self._wide += end - start
            if self._wide > MAX_STRUCTURE_BYTES:
                raise InvalidRequest(TOO_MUCH)
        if self._body.find(b"\\", start, end) >= 0:
            return str(_parsed(memoryview(self._body)[start:end]))
        try:
            return self._body[start + 1 : end - 1].decode()
        except UnicodeDecodeError:
            raise InvalidRequest(NOT_JSON) from None

    def _is_one_byte_each(self, start: int, end: int) -> bool:
        """Whether Python needs but a byte for each character of a string; it may need four."""
        body = self._body
        if body.count(b"\\u", start, end) != body.count(b"\\u00", start, end):
            return False
        slices = range(start, end, ASCII_SLICE)
        return all(body[at : min(end, at + ASCII_SLICE)].isascii() for at in slices)

    def _add_without_array(self, structure: bytearray, start: int, end: int) -> None:
        """Adds what lies between two strings, less the array of numbers that a key has there."""
        array = self._array(start, end)
        if not array:
            if end - start > MAX_STRUCTURE_BYTES:
                raise InvalidRequest(TOO_MUCH)
            structure += self._body[start:end]
            return
        structure += self._body[start : array.start]
        structure += self._cut(array)
        structure += self._body[array.end : end]

    def _array(self, start: int, end: int) -> NumberText | None:
        body = self._body
        opening = body.find(b"[", start, end)
        if opening < 0 or body[start:opening].strip() != b":":
            return None
        brace = body.find(b"}", opening, end)
        closing = body.rfind(b"]", opening, end if brace < 0 else brace) + 1
        if closing - opening < LONG:
            return None
        return NumberText(body, opening, closing) if self._is_one(opening, closing) else None

    def _is_one(self, opening: int, closing: int) -> bool:
        """Whether each bracket there has its other one; counting is slow beside looking for one."""
        body = self._body
        if body.find(b"[", opening + 1, closing) < 0:
            return body.find(b"]", opening, closing) == closing - 1
        return body.count(b"[", opening, closing) == body.count(b"]", opening, closing)

    def _cut(self, what: Any) -> bytes:
        name = f"{CUT}{len(self._cuts)}"
        self._cuts[name] = what
        return orjson.dumps(name)

    def _restored(self, node: Any, depth: int) -> Any:
        if isinstance(node, str):
            return self._cuts.get(node, node)
        if not isinstance(node, (list, dict)):
            return node
        if not depth:
            raise InvalidRequest(TOO_DEEP)
        if isinstance(node, list):
            return [self._restored(item, depth - 1) for item in node]
        return {key: self._restored(value, depth - 1) for key, value in node.items()}


def list_pixels(values: list[Any], shape: list[int]) -> bytearray:
    """As NumberText.pixels, for an array short enough to have been parsed."""
    if values and isinstance(values[0], list):
        values = _flat(values, shape)
    if any(isinstance(value, bool) for value in values):  # which Python takes for 0 and 1
        raise InvalidRequest(NOT_PIXELS)
    return _bytes(values)


def _flat(values: list[Any], shape: list[int]) -> list[Any]:
    rows: list[Any] = [values]
    for size in shape:
        if not all(isinstance(row, list) and len(row) == size for row in rows):
            raise InvalidRequest(NOT_PIXELS)
        rows = [item for row in rows for item in row]
    return rows


def _slices(body: bytes, start: int, end: int) -> Iterator[bytes]:
    """The text of an array's items, cut at commas."""
    at = start
    while True:
        comma = body.find(b",", at + SLICE_BYTES, end)
        text = body[at : end if comma < 0 else comma]
        if at > start and not text.strip():
            raise InvalidRequest(NOT_JSON)
        yield text
        if comma < 0:
            return
        at = comma + 1


def _parsed(text: "bytes | bytearray | memoryview") -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise InvalidRequest(NOT_JSON) from None


def _bytes(numbers: list[Any]) -> bytearray:
    try:
        return bytearray(numbers)
    except (TypeError, ValueError):
        raise InvalidRequest(NOT_PIXELS) from None


def _is_nested(structure: bytes, shape: list[int]) -> bool:
    """Whether brackets and commas are those of an array of this shape."""
    expected = b""
    for size in reversed(shape):
        if size < 1 or (len(expected) + 1) * size > len(structure) + 1:
            return False
        expected = b"[" + ((expected + b",") * size)[:-1] + b"]"
    return structure == expected
