"""Bodies are read as orjson reads them, whatever their size, and numbers as pixels."""

import json
import string
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, strategies as st

from mlserver_timm.errors import InvalidRequest
from mlserver_timm.protocol.json_reader import (
    LONG,
    MAX_ESCAPES,
    MAX_STRUCTURE_BYTES,
    SLICE_BYTES,
    NumberText,
    list_pixels,
    read_json,
)
from tests.support.mutations import QUIET

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(max_size=20)
    | st.text('"\\x', max_size=20)
    | st.text("é" + string.ascii_letters + '"\\', min_size=LONG, max_size=2 * LONG)
)
documents = st.recursive(
    scalars | st.lists(st.integers(0, 300), min_size=LONG // 2, max_size=LONG),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=12,
)


def plain(node: Any) -> Any:
    """With the arrays that were left as text."""
    if isinstance(node, NumberText):
        return orjson.loads(node.body[node.start : node.end])
    if isinstance(node, list):
        return [plain(item) for item in node]
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    return node


@QUIET
@given(st.dictionaries(st.text(max_size=9), documents, max_size=4), st.sampled_from([None, 1, 4]))
def test_any_document(document: Any, indent: int | None) -> None:
    for ascii_only in (True, False):
        data = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
        assert plain(read_json(data)) == document
        assert plain(read_json(data + b'{"more":', len(data))) == document


@QUIET
@given(st.binary(max_size=40), st.integers(0, 3000), st.integers(0, 9))
def test_damaged_documents(new: bytes, at: int, dropped: int) -> None:
    """Whatever else may be taken, what orjson takes is read the same."""
    whole = {"a": [[1, 22, 3]] * 200, "b": "x" * 1500, "c": {"d": list(range(400))}}
    data = bytearray(json.dumps(whole).encode())
    data[at : at + dropped] = new
    try:
        expected = orjson.loads(bytes(data))
    except orjson.JSONDecodeError:
        return
    assert plain(read_json(bytes(data))) == expected


@pytest.mark.parametrize(
    "data",
    [b"", b'"', b'{"a":"', b"{}{}", b'{"a":1]', b"\xff", b"[" * 3000, b'{"a":"' + b"x" * 2000],
)
def test_no_json(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        read_json(data)


def test_bounds() -> None:
    deep = b"[" * 17 + b"]" * 17
    for data in (
        deep,
        deep.replace(b"[", b'{"a":').replace(b"]", b"}").replace(b":}", b":1}"),
        b'["' + b'\\"' * (MAX_ESCAPES + 1) + b'"]',
        b"[" + b",".join([b'"a"'] * (MAX_STRUCTURE_BYTES // 3)) + b"]",
        b'{"a":[' + b",".join([b"{}"] * MAX_STRUCTURE_BYTES) + b"]}",
    ):
        with pytest.raises(InvalidRequest, match="nested|parts"):
            read_json(data)
    assert read_json(b"[" * 16 + b"]" * 16)
    assert read_json(b'["' + b'\\"' * (MAX_ESCAPES // 2) + b'"]') == ['"' * (MAX_ESCAPES // 2)]


def test_nobody_can_write_a_cut_himself() -> None:
    data = json.dumps({"a": "\0cut 0", "b": "x" * LONG, "c": "\0cut 9"}).encode()
    assert read_json(data)["b"] == "x" * LONG
    assert read_json(data)["c"] == "\0cut 9"


# --- Pixels -----------------------------------------------------------------------------------

shapes = st.lists(st.integers(1, 40), min_size=1, max_size=4).filter(lambda s: np.prod(s) < 20_000)


def both_ways(array: Any, indent: int | None = None) -> list[Any]:
    """As a list, and as text."""
    text = json.dumps(array, indent=indent).encode()
    return [array, NumberText(text, 0, len(text))]


def pixels(data: Any, shape: list[int]) -> bytes:
    return bytes(list_pixels(data, shape) if isinstance(data, list) else data.pixels(shape))


@QUIET
@given(shapes, st.integers(0, 99), st.sampled_from([None, 0, 2]))
def test_pixels(shape: list[int], seed: int, indent: int | None) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    for data in (*both_ways(array.tolist(), indent), *both_ways(array.ravel().tolist(), indent)):
        assert pixels(data, shape) == array.tobytes()


@pytest.mark.parametrize("size", [SLICE_BYTES // 2 + n for n in range(-3, 4)] + [3 * SLICE_BYTES])
def test_slices(size: int) -> None:
    values = [i % 10 for i in range(size)]
    for data in both_ways(values):
        assert pixels(data, [size]) == bytes(values)


@QUIET
@given(shapes.filter(lambda s: len(s) > 1), st.data())
def test_nested_otherwise_than_the_shape(shape: list[int], draw: st.DataObject) -> None:
    other = draw.draw(shapes.filter(lambda s: s != shape and len(s) > 1))
    array = np.zeros(other, np.uint8).tolist()
    for data in both_ways(array):
        with pytest.raises(InvalidRequest):
            pixels(data, shape)


BAD = [256, -1, 1.5, 1.0, True, False, None, "1", {}, 2**70, [], [1, 2]]


@pytest.mark.parametrize("bad", BAD, ids=map(repr, BAD))
@pytest.mark.parametrize("size", [3, 60_000])
@pytest.mark.parametrize("at", [0, 1, -1])
def test_no_pixels(bad: Any, size: int, at: int) -> None:
    values: list[Any] = [7] * size
    values[at] = bad
    for data in both_ways(values):
        with pytest.raises(InvalidRequest):
            pixels(data, [size])


@pytest.mark.parametrize(
    "text",
    [
        b"[1,2,]",
        b"[,1]",
        b"[1,,2]",
        b"[1 2]",
        b"[01]",
        b"[1]]",
        b"[[1]",
        b"[1]2]",
        b"[1],[2]",
        b"[[1][2]]",
        b"[[1],2]",
        b"[+1]",
        b"[1,2" + b"," * 20_000 + b"]",
        b"[1" + b",2" * 20_000 + b",]",
    ],
)
def test_no_array(text: bytes) -> None:
    for shape in ([1], [2], [1, 1], [2, 1], [1, 2]):
        with pytest.raises(InvalidRequest):
            NumberText(text, 0, len(text)).pixels(shape)
