"""JSON arrays of pixel values to numpy, without a Python object for each value."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from mlserver_timm.errors import InvalidRequest

SLICE_BYTES = 256 * 2**10
"""Bytes of text that are parsed at once. Numpy releases the GIL in between, and its temporary
arrays stay in the processor's cache."""

NOT_PIXELS = "Pixels must be whole numbers from 0 to 255, nested as the shape says or in one list."


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
    values = np.empty((end - start) // 2, np.uint8)
    count, structure = 0, bytearray(b"[")
    for part in _parts(text, start + 1, end - 1):
        numbers, separators = _read_part(part)
        values[count : count + len(numbers)] = numbers
        count += len(numbers)
        structure += separators
    structure += b"]"
    nesting = shape if structure.find(b"[", 1) > 0 else [count]
    if structure != b"[]" and not (math.prod(nesting) == count and _is_nested(structure, nesting)):
        raise InvalidRequest(NOT_PIXELS)
    return values[:count]


def _parts(text: bytes, start: int, end: int) -> Iterator[bytes]:
    """Yield the text in slices, each but the first beginning with a comma."""
    while start < end:
        comma = text.find(b",", start + SLICE_BYTES, end)
        yield text[start : end if comma < 0 else comma]
        start = end if comma < 0 else comma


def _read_part(part: bytes) -> tuple[np.ndarray, bytes]:
    """Return the numbers of a slice, and its commas and brackets."""
    codes = np.frombuffer(b",,,%b," % part, np.uint8)  # each digit has three bytes before it
    digits = codes - np.uint8(ord("0"))
    is_digit, is_comma, is_space = digits < 10, codes == ord(","), codes == ord(" ")
    ends = np.flatnonzero(is_digit[3:-1] > is_digit[4:])
    commas = np.count_nonzero(is_comma) - 4
    others = len(part) - np.count_nonzero(is_digit) - commas - np.count_nonzero(is_space)
    separators = part.translate(None, b"0123456789 ") if others else b"," * commas
    if (is_space[1:] > is_comma[:-1]).any() or others and separators.strip(b",[]"):
        return _read_compacted(part, len(ends))
    if others and not _are_between_separators(codes, is_digit):
        raise InvalidRequest(NOT_PIXELS)
    return _numbers(digits, ends), separators


def _read_compacted(part: bytes, count: int) -> tuple[np.ndarray, bytes]:
    """Read a slice that has whitespace elsewhere than in ", ", or other characters."""
    compact = part.translate(None, b" \t\r\n")
    if len(compact) == len(part):
        raise InvalidRequest(NOT_PIXELS)
    numbers, separators = _read_part(compact)
    if len(numbers) != count:  # "1 2" has become "12"
        raise InvalidRequest(NOT_PIXELS)
    return numbers, separators


def _are_between_separators(codes: np.ndarray, is_digit: np.ndarray) -> bool:
    """Return whether no number stands directly before "[" or after "]"."""
    before, after = codes[1:] == ord("["), codes[:-1] == ord("]")
    return not (is_digit[:-1] & before | is_digit[1:] & after).any()


def _numbers(digits: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the uint8 numbers whose last digits are at `3 + ends`; values of 10 and more are no
    digits."""
    ones, tens, hundreds, thousands = (digits[3 - place :].take(ends) for place in range(4))
    has_tens = tens < 10
    has_hundreds = has_tens & (hundreds < 10)
    values = ones + 10 * (tens * has_tens) + np.uint16(100) * (hundreds * has_hundreds)
    leading_zero = has_tens & (values < 10) | has_hundreds & (values < 100)
    if (leading_zero | (values > 255) | has_hundreds & (thousands < 10)).any():
        raise InvalidRequest(NOT_PIXELS)
    return values.astype(np.uint8)


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
