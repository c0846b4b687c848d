"""JSON arrays of pixel values to numpy, without a Python object for each value."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import orjson

from mlserver_timm.errors import InvalidRequest

SLICE_BYTES = 64 * 2**10
"""Bytes of text that are parsed at once: the list of their numbers stays in the processor's
cache."""

NOT_PIXELS = "Pixels must be whole numbers from 0 to 255, nested as the shape says or in one list."

NEXT = b"[0"
WITHOUT_BRACKETS = bytes.maketrans(b"[]", b"  ")
EQUAL_DIGITS = bytes.maketrans(b"123456789", b"000000000")


def read_pixels(
    text: bytes, shape: Sequence[int], start: int = 0, end: int | None = None
) -> np.ndarray:
    """Return the numbers of the JSON array in `text[start:end]` as flat uint8.

    They may be in one list of any length, or nested as `shape` says. Raises InvalidRequest for
    anything else than whole numbers from 0 to 255, and for invalid JSON.
    """
    end = len(text) if end is None else end
    if end - start < 2 or text[start] != ord("[") or text[end - 1] != ord("]"):
        raise InvalidRequest(NOT_PIXELS)
    values, structure, is_flat = bytearray(), bytearray(b"["), True
    before = b"["
    for part in _parts(text, start + 1, end - 1):
        if len(part) > 2 * SLICE_BYTES or (before == NEXT and not values):
            raise InvalidRequest(NOT_PIXELS)  # no number, or a very long one, between two commas
        if any(character in part for character in (b"[", b"]", b"-", b"e")):  # e as in true
            is_flat = False
            outline = part.translate(EQUAL_DIGITS, b" \t\r\n")
            if b"0[" in outline or b"]0" in outline:
                raise InvalidRequest(NOT_PIXELS)
            structure += outline.translate(None, b"0")
            plain = part.translate(WITHOUT_BRACKETS)
        else:
            structure += b"," * part.count(b",")
            plain = part
        try:
            values += bytearray(orjson.loads(b"%b%b]" % (before, plain)))[len(before) - 1 :]
        except (ValueError, TypeError):
            raise InvalidRequest(NOT_PIXELS) from None
        before = NEXT  # all other slices begin with a comma
    structure += b"]"
    if not (is_flat or math.prod(shape) == len(values) and _is_nested(structure, shape)):
        raise InvalidRequest(NOT_PIXELS)
    return np.frombuffer(values, np.uint8)


def _parts(text: bytes, start: int, end: int) -> Iterator[bytes]:
    """Yield the text in slices, each but the first beginning with a comma."""
    while start < end:
        comma = text.find(b",", start + SLICE_BYTES, end)
        stop = end if comma < 0 else comma
        yield text[start:stop]
        start = stop


def _is_nested(text: bytearray, shape: Sequence[int]) -> bool:
    """Return whether brackets and commas are those of an array of this shape."""
    structure = np.frombuffer(text, np.uint8)
    for size in shape:
        width, rest = divmod(len(structure) - 1, size) if size > 0 else (0, 0)
        if width < 1 or rest or structure[0] != ord("["):
            return False
        rows = structure[1:].reshape(size, width)  # each is an item and "," or, the last, "]"
        ends = rows[:, -1]
        if (ends[:-1] != ord(",")).any() or ends[-1] != ord("]"):
            return False
        structure = rows[0, :-1]
        if (rows[:, :-1] != structure).any():
            return False
    return len(structure) == 0
