"""Pixels in JSON are read as Python's parser reads them, or refused."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.protocol.json_pixels import SLICE_BYTES, read_pixels


def expected_pixels(text: bytes, shape: list[int]) -> np.ndarray | None:
    """Return the values of the array, or None if it must be refused."""
    try:
        value = json.loads(text.decode("ascii"))
    except ValueError:
        return None
    if not isinstance(value, list) or b"-" in text:
        return None
    if any(isinstance(item, list) for item in value):
        if not _is_nested(value, shape):
            return None
        value = np.array(value, object).ravel().tolist()
    if any(type(item) is not int or not 0 <= item <= 255 for item in value):
        return None
    return np.array(value, np.uint8)


def _is_nested(value: Any, shape: list[int]) -> bool:
    if not shape:
        return not isinstance(value, list)
    return (
        isinstance(value, list)
        and len(value) == shape[0]
        and all(_is_nested(item, shape[1:]) for item in value)
    )


def assert_read_as_python_does(text: bytes, shape: list[int]) -> None:
    expected = expected_pixels(text, shape)
    if expected is None:
        with pytest.raises(InvalidRequest, match="whole numbers from 0 to 255"):
            read_pixels(text, shape)
    else:
        np.testing.assert_array_equal(read_pixels(text, shape), expected)


SMALL = [
    ([2, 2, 3], [[[1, 22, 255], [0, 5, 66]], [[7, 8, 9], [10, 200, 30]]]),
    ([2, 1], [[1], [2]]),
    ([4], [0, 10, 100, 255]),
    ([1, 1, 3], [1, 2, 3]),
]


@given(
    st.sampled_from(SMALL),
    st.sampled_from([None, 1]),
    st.lists(
        st.tuples(st.integers(0, 150), st.text('0129,[] \n-.e"tx', max_size=3), st.integers(0, 3)),
        min_size=1,
        max_size=3,
    ),
)
def test_mutated_arrays(
    array: tuple[list[int], Any], indent: int | None, changes: list[tuple[int, str, int]]
) -> None:
    """A mutated array is read if it is still one of pixels, and else refused."""
    shape, value = array
    text = bytearray(json.dumps(value, indent=indent).encode())
    for at, new, dropped in changes:
        text[at : at + dropped] = new.encode()
    assert_read_as_python_does(bytes(text).strip(), shape)


@given(st.text("01259,[] ", max_size=12), st.sampled_from([[1], [2], [1, 1], [2, 1], [1, 2]]))
def test_anything_in_brackets(text: str, shape: list[int]) -> None:
    assert_read_as_python_does(f"[{text}]".encode(), shape)


@pytest.mark.parametrize("spaces", ["", " "])
@pytest.mark.parametrize("nested", [False, True])
def test_slices(spaces: str, nested: bool) -> None:
    """Numbers on the seam of two slices are read once and whole."""
    values = np.random.default_rng(0).integers(0, 256, (SLICE_BYTES // 4, 2), np.uint8)
    array = values.tolist() if nested else values.ravel().tolist()
    for lead in range(4):
        text = b"[" + b" " * lead + json.dumps(array, separators=(f",{spaces}", ":")).encode()[1:]
        np.testing.assert_array_equal(read_pixels(text, list(values.shape)), values.ravel())


BAD = [256, -1, 1.5, 1.0, True, False, None, "1", {}, 2**70, [], [1, 2], 1000, 2550]


@pytest.mark.parametrize("bad", BAD, ids=map(repr, BAD))
def test_values_that_are_not_pixels(bad: Any) -> None:
    for before, after in ((0, 2), (1, 1), (2, 0), (SLICE_BYTES // 2, 9)):
        text = b"[" + b"7," * before + json.dumps(bad).encode() + b",7" * after + b"]"
        with pytest.raises(InvalidRequest, match="whole numbers from 0 to 255"):
            read_pixels(text, [before + 1 + after])


@pytest.mark.parametrize(
    "text",
    [
        *[b"", b"[", b"]", b"1", b"null", b'"[1]"', b"{}", b"[1]]", b"[[1]", b"[1],[2]", b"[NaN]"],
        *[b"[1,2,]", b"[,1]", b"[1,,2]", b"[1 2]", b"[01]", b"[+1]", b"[1\x0b]", b"[1\x00]"],
        *[b"[[1]2]", b"[[1],2]", b"[[1,]2]", b"[1,[2]]", b"[[1][2]]", b"[[],[1,2]]", b"[[1],[2,]]"],
        b"[\xef\xbc\x91]",
        b"[1,2" + b"," * SLICE_BYTES + b"]",
        b"[1" + b",2" * SLICE_BYTES + b",]",
    ],
)
def test_no_array(text: bytes) -> None:
    for shape in ([1], [2], [1, 1], [2, 1], [1, 2]):
        with pytest.raises(InvalidRequest, match="whole numbers from 0 to 255"):
            read_pixels(text, shape)


def test_empty_list() -> None:
    for text in (b"[]", b"[ \n]"):
        assert len(read_pixels(text, [1, 1, 3])) == 0


def test_ragged_rows_with_the_right_count() -> None:
    """`[[1,2],[3]]` has as many numbers as `[3,1]`."""
    for text, shape in ((b"[[1,2],[3]]", [3, 1]), (b"[[1],[2,3]]", [1, 3]), (b"[[1,2,3]]", [3])):
        with pytest.raises(InvalidRequest):
            read_pixels(text, shape)


@pytest.mark.parametrize("text", [b"[%b,1]", b"[[1%b,2]]", b"[1,%b2]"])
def test_no_number_takes_as_much_as_a_slice(text: bytes) -> None:
    """Copies of white space between two commas would fill the memory."""
    spaces = b" " * 2 * SLICE_BYTES
    for shape in ([1, 2], [1]):
        with pytest.raises(InvalidRequest, match="whole numbers from 0 to 255"):
            read_pixels(text % spaces, shape)


def test_a_first_slice_without_a_number() -> None:
    with pytest.raises(InvalidRequest, match="whole numbers from 0 to 255"):
        read_pixels(b"[%b,1]" % (b" " * SLICE_BYTES), [1])
