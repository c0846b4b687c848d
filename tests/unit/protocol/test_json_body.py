"""JSON requests are read as Python's parser reads them; other bodies get one sentence."""

import base64
import json
import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mlserver_timm.errors import InvalidImage, InvalidRequest
from mlserver_timm.protocol import json_body
from mlserver_timm.protocol.json_body import read_infer
from mlserver_timm.protocol.request import (
    ClassificationRequest,
    classification_request,
)
from tests.support.binary_tensors import binary_tensor
from tests.support.clients import assert_sentence, body, tensor
from tests.support.fuzz_targets import NETWORK_OUTPUTS
from tests.support.refusals import GOOD, PIXELS, array


def parse(request: Any, *tensors: bytes, length: int | None = None) -> ClassificationRequest:
    """Return the request of a body, which binary tensors may follow."""
    head = request if isinstance(request, bytes) else json.dumps(request).encode()
    if not tensors:
        return classification_request(read_infer(head), NETWORK_OUTPUTS)
    length = len(head) if length is None else length
    content = read_infer(b"".join([head, *tensors]), "application/json", str(length))
    return classification_request(content, NETWORK_OUTPUTS)


def refusal(request: Any, *tensors: bytes, **options: Any) -> str:
    """Return the error that a request gets."""
    with pytest.raises((InvalidRequest, InvalidImage)) as error:
        parse(request, *tensors, **options)
    assert_sentence(str(error.value))
    return str(error.value)


# --- Valid bodies -----------------------------------------------------------------------------

arrays = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)).flatmap(
    lambda size: st.builds(
        lambda channels, seed: np.random.default_rng(seed).integers(
            0, 256, (*size, channels), np.uint8
        ),
        st.sampled_from([1, 3, 4]),
        st.integers(0, 1000),
    )
)
texts = st.text(max_size=20) | st.text('"\\/x{},[]:data ', max_size=20)


def keys_in_order(content: dict[str, Any], order: list[int]) -> dict[str, Any]:
    """Return the same object with its keys in another order."""
    items = list(content.items())
    return dict(sorted(items, key=lambda item: order[items.index(item) % len(order)]))


@given(
    arrays,
    st.sampled_from(["UINT8", "INT8", "INT64", "UINT16"]),
    st.booleans(),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.dictionaries(texts, st.recursive(texts | st.integers(), st.lists, max_leaves=4), max_size=3),
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
)
def test_pixels_are_those_that_python_reads(
    images: np.ndarray,
    datatype: str,
    nested: bool,
    indent: int | None,
    ascii_only: bool,
    unknown: dict[str, Any],
    order: list[int],
) -> None:
    """With unknown fields, strings with quotes and brackets, and keys in any order."""
    data = images.tolist() if nested else images.ravel().tolist()
    content = tensor(data, list(images.shape), datatype)
    text = json.dumps(
        keys_in_order({**unknown, "inputs": [keys_in_order(content, order)]}, order),
        indent=indent,
        ensure_ascii=ascii_only,
    ).encode()
    try:
        request = parse(text)
    except InvalidRequest as error:  # an unknown field may have the name of a known one
        assert {"k", "topk", "top_k"} & unknown.keys() or "outputs" in unknown, error
        return
    seen = [image for image in request.images if isinstance(image, np.ndarray)]
    np.testing.assert_array_equal(np.stack(seen), images)


@given(st.lists(st.binary(min_size=30, max_size=60), min_size=1, max_size=3), st.booleans())
def test_files_are_those_that_python_reads(files: list[bytes], is_column: bool) -> None:
    encoded = [base64.b64encode(b"\xff" + file).decode() for file in files]
    data = [[text] for text in encoded] if is_column else encoded
    shape = [len(files), 1] if is_column else [len(files)]
    request = parse(body(tensor(data, shape)))
    assert request.images == [b"\xff" + file for file in files]


@pytest.mark.parametrize("size", [10**6, 5 * 10**6])
def test_large_files(size: int) -> None:
    """Bounds of large bodies, and the decoder for large files, change nothing."""
    file = GOOD + bytes(size)
    request = parse(body(tensor(file), id="x", parameters={"top_k": 1}))
    assert request.images == [file]


def test_options() -> None:
    request = parse(
        body(
            tensor(GOOD, parameters={"top_k": 2, "content_type": "base64"}),
            id="x",
            parameters={"top_k": 1, "function_to_apply": "sigmoid", "other": None},
            outputs=[
                {"name": "scores", "parameters": {"binary_data": True}},
                {"name": "labels"},
                {"name": "labels"},
            ],
        )
    )
    assert request.top_k == 2
    assert request.function == "sigmoid"
    assert request.id == "x"
    assert request.outputs == ("scores", "labels")
    assert request.binary_outputs == {"scores"}


def test_the_last_of_equal_keys_counts_as_in_python() -> None:
    text = b'{"inputs":[],"id":"a","inputs":[%b],"id":"b"}'
    first = json.dumps(tensor(PIXELS, [2, 2, 3], "UINT8"))[:-1]
    inputs = f'{first},"data":{PIXELS[::-1]},"shape":[4,1,3]}}'.encode()
    request = parse(text % inputs)
    expected = json.loads(text % inputs)["inputs"][0]
    assert request.id == "b"
    [image] = request.images
    assert isinstance(image, np.ndarray)
    np.testing.assert_array_equal(image, np.reshape(expected["data"], expected["shape"]))


def test_byte_order_mark() -> None:
    text = b"\xef\xbb\xbf" + json.dumps(body(tensor(GOOD))).encode()
    assert parse(text).images == [GOOD]
    one = b"\xef\xbb\xbf" + json.dumps(body(binary_tensor(bytes(12), [2, 2, 3], "UINT8"))).encode()
    assert len(parse(one, bytes(12)).images) == 1


LONG = [7] * 3 * 80 * 60


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"x":{"data":%s},', ""),
        ("", ',"x":{"data":%s}'),
        ('"x":"\\"data\\":[1],","data":[1,2],', ""),
        ('"x":"a\\\\",', ""),
        ('"x":"\\\\\\"data\\": [[null]]",', ""),
        ('"x":[null],', ',"y":[null]'),
        ('"x":"' + "y" * json_body.MAX_HEAD + '",', ""),
    ],
)
def test_long_arrays_elsewhere(before: str, after: str) -> None:
    """Only the input's own array is its pixels."""
    other = json.dumps([9] * 3000)
    inputs = json.dumps([tensor(LONG, [60, 80, 3], "UINT8")])
    text = "{" + before.replace("%s", other) + f'"inputs":{inputs}' + after.replace("%s", other)
    [image] = parse(text.encode() + b"}").images
    assert isinstance(image, np.ndarray)
    assert (image == 7).all() and image.shape == (60, 80, 3)


def test_the_placeholder_of_a_long_array_cannot_be_sent() -> None:
    cut = tensor(json.loads(json_body.PLACEHOLDER), [1, 1, 1], "UINT8")
    other = json.dumps([9] * 3000)
    for text in (
        json.dumps(body(cut)),
        f'{{"x":{{"data":{other}}},"inputs":[{json.dumps(cut)}]}}',
        f'{{"inputs":[{json.dumps(cut)}],"x":{{"data":{other}}}}}',
    ):
        assert "whole numbers" in refusal(text.encode())


def test_long_arrays_in_ignored_fields_must_be_json() -> None:
    for junk in ("[1" + ",2" * 3000 + ",]", "[" + "1 " * 3000 + "]"):
        text = f'{{"x":{{"data":{junk}}},"inputs":[{json.dumps(tensor(GOOD))}]}}'
        assert "not valid JSON" in refusal(text.encode())


# --- Refusals ---------------------------------------------------------------------------------


def without(key: str) -> dict[str, Any]:
    whole = tensor(PIXELS, [2, 2, 3], "UINT8")
    return body({k: v for k, v in whole.items() if k != key})


REFUSED: list[tuple[str, Any]] = [
    ("exactly one input", {}),
    ("exactly one input", body()),
    ("exactly one input", body(tensor(GOOD), tensor(GOOD))),
    ("not valid: inputs: Expected a list, got null", {"inputs": None}),
    ("not valid: inputs: Expected a list, got a JSON object", {"inputs": {"payload": PIXELS}}),
    ("not valid: inputs.0: Expected a JSON object, got a whole number", body(1, 2)),
    ("not valid: Expected a JSON object, got a list", []),
    ("not valid: Expected a JSON object, got null", None),
    ("inputs.0: Object missing required field 'name'", without("name")),
    ("inputs.0.data: the field is missing", without("data")),
    ("inputs.0.name: Expected text, got null", body(tensor(GOOD, name=None))),
    ("inputs.0.name: Expected text of length <= 256", body(tensor(GOOD, name="x" * 300))),
    ("inputs.0.name: at most 65536 bytes", body(tensor(GOOD, name="x" * 100_000))),
    ("inputs.0.datatype: Expected text, got a whole number", array([2, 2, 3], PIXELS, 8)),  # type: ignore[arg-type]
    ("inputs.0.shape: Expected a list, got text", array("2,2,3")),
    ("inputs.0.shape.0: Expected a whole number, got text", array(["2", "x", 3])),
    ("inputs.0.shape.1: Expected a whole number, got true or false", array([2, True, 3])),
    ("inputs.0.shape.0: Expected a whole number, got a list", array([[2, 2, 3]])),
    ("inputs.0.shape: Expected a list of length <= 8", array([1] * 9)),
    ("inputs.0.parameters: Expected a JSON object or null", body(tensor(GOOD, parameters=[]))),
    (
        "parameters.x: expected text, a number or a boolean",
        body(tensor(GOOD), parameters={"x": {}}),
    ),
    (
        "parameters: Expected a JSON object of length <= 64",
        body(tensor(GOOD), parameters=dict.fromkeys(map(str, range(65)))),
    ),
    ("'content_type' must be text", body(tensor(GOOD, parameters={"content_type": 5}))),
    ("id: Expected text or null, got a whole number", body(tensor(GOOD), id=5)),
    ("outputs.0: Expected a JSON object, got text", body(tensor(GOOD), outputs=["labels"])),
    ("outputs: Expected a list or null, got a JSON object", body(tensor(GOOD), outputs={})),
    ("outputs: Expected a list of length <= 16", body(tensor(GOOD), outputs=[{"name": "a"}] * 17)),
    ("exactly one input", body(*[tensor(GOOD)] * 17)),
    ("'top_k' belongs in", body(tensor(GOOD)) | {"top_k": 3}),
    ("'function_to_apply' belongs in", body(tensor(GOOD)) | {"function_to_apply": "none"}),
    ("it is called 'top_k'", body(tensor(GOOD)) | {"topk": 3}),
    ("must be a base64 string|must be text", body(tensor([1, 2, 3]))),
    ("base64, not a list of numbers", body(tensor(list(GOOD)))),
    ("base64, not a list of numbers", body(tensor(list(GOOD) * 30))),
    ("must be text", body(tensor([None]))),
    ("multiply values from 0 to 1 by 255", body(tensor([-0.5] * 2000, [1, 2000], "FP32"))),
    ("must be whole numbers from 0 to 255", body(tensor([-1] + [1] * 1999, [1, 2000], "UINT8"))),
    ("must be text", body(tensor([["x"]]))),
    ("data: Expected a list, got text", body(tensor("x", [1]))),
    ("whole numbers", array([2, 2, 3], [1.0] * 12)),
    ("whole numbers", array([2, 2, 3], {"0": 1})),
    ("whole numbers", array([2, 2, 3], None)),
    ("shared memory", body(tensor(GOOD, parameters={"shared_memory_region": "x"}))),
    ("Inference-Header-Content-Length", body(binary_tensor(b"x", [1], "BYTES"))),
]


@pytest.mark.parametrize(("reason", "request_"), REFUSED)
def test_refused(reason: str, request_: Any) -> None:
    with pytest.raises((InvalidRequest, InvalidImage), match=reason):
        parse(request_)
    refusal(request_)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "truncated"),
        (b"hello", "invalid character"),
        (json.dumps(body(tensor(GOOD))).encode()[:-2], "truncated"),
        (b'{"inputs":[]}{}', "trailing characters"),
        (b'{"inputs":[1,]}', "list|JSON object"),
        (b'{"x":[NaN]}', "invalid character"),
        (b'{"x":"\\ud800"}', "truncated|escape"),
        (b'{"x":"\\q"}', "invalid escaped character"),
        (b'{"x":01}', "invalid number"),
        (b'{"x":"\xff\xfe"}', "not UTF-8"),
        (b'{"x":"' + "é".encode()[:1], "not UTF-8"),
        (b'{"x":"' + "é".encode() * json_body.COUNT_SLICE + b'\xc3"}', "not UTF-8"),
        (b'{"inputs":[{"name":"\xed\xa0\x80"}]}', "not UTF-8"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deeply"),
        (b"[" * 100_000, "JSON object, got a list"),
        (bytes(1000), "invalid character"),
        (GOOD, "not UTF-8"),
        (b"\xff\xfe" + "{}".encode("utf-16-le"), "not UTF-8"),
    ],
)
def test_broken_json(text: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        parse(text)
    assert_sentence(refusal(text))


def test_data_in_json_and_behind_it() -> None:
    with pytest.raises(InvalidRequest, match="either 'data'"):
        parse(body(BINARY | {"data": [0] * 12}), DATA)


@pytest.mark.parametrize("item", [b"{}", b'"\\"\\\\"', b"[]"])
def test_large_bodies_of_many_parts(item: bytes) -> None:
    text = b'{"x":[' + b",".join([item] * (3 * 2**20 // len(item))) + b'],"inputs":[]}'
    assert "too many parts" in refusal(text)


@pytest.mark.parametrize(("objects", "reason"), [(1000, "exactly one input"), (1001, "many parts")])
def test_the_limit_of_objects_in_a_large_body(objects: int, reason: str) -> None:
    """The body itself is one. They are counted in slices of a megabyte."""
    parts = b",".join([b"{}"] * (objects - 1))
    text = b'{"x":"%b","y":[%b],"inputs":[]}' % (b"x" * (3 * 2**19), parts)
    assert reason in refusal(text)


@pytest.mark.parametrize("content_type", ["text/plain", "image/png", "nonsense", "text/json"])
def test_other_content_types(content_type: str) -> None:
    with pytest.raises(InvalidRequest, match="Content-Type: application/json"):
        read_infer(json.dumps(body(tensor(GOOD))).encode(), content_type)


@pytest.mark.parametrize(
    "content_type", [None, "", "application/json; charset=utf-8", "application/vnd.x+JSON"]
)
def test_content_types_of_json(content_type: str | None) -> None:
    assert read_infer(json.dumps(body(tensor(GOOD))).encode(), content_type).inputs


# --- Binary tensors ---------------------------------------------------------------------------


@given(arrays, st.sampled_from(["UINT8", "INT32", "UINT64", "INT16"]))
def test_binary_pixels(images: np.ndarray, datatype: str) -> None:
    data = images.astype(np.dtype(datatype.lower()).newbyteorder("<")).tobytes()
    request = parse(body(binary_tensor(data, list(images.shape), datatype)), data)
    seen = [image for image in request.images if isinstance(image, np.ndarray)]
    np.testing.assert_array_equal(np.stack(seen), images)


def test_binary_pixels_are_not_copied() -> None:
    head = json.dumps(body(binary_tensor(bytes(192), [8, 8, 3], "UINT8"))).encode()
    whole = head + bytes(192)
    [image] = classification_request(
        read_infer(whole, None, str(len(head))), NETWORK_OUTPUTS
    ).images
    assert isinstance(image, np.ndarray)
    assert np.shares_memory(image, np.frombuffer(whole, np.uint8))


DATA = bytes(12)
BINARY = binary_tensor(DATA, [2, 2, 3], "UINT8")


@pytest.mark.parametrize("length", ["", "0", "-1", "x", "1.5", "+5", "9" * 40, "١", "999"])
def test_header_length(length: str) -> None:
    with pytest.raises(InvalidRequest, match="Inference-Header-Content-Length"):
        read_infer(json.dumps(body(BINARY)).encode() + DATA, None, length)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "reason"),
    [
        ("UINT8", [2, 2, 3], DATA + b"x", "of the 13 bytes"),
        ("UINT8", [-2, -2, 3], DATA, "needs 12 bytes"),
        ("UINT8", [2**40, 2**40, 3], DATA, "needs"),
        ("INT16", [2, 1, 3], b"\xff" * 12, "0 to 255"),
        ("FP32", [1, 1, 3], DATA, "Unsupported datatype 'FP32'"),
        ("uint8", [2, 2, 3], DATA, "Unsupported datatype 'uint8'"),
        ("BYTES", [1], b"\1", "ends within element 0"),
        ("BYTES", [1], b"\xff\xff\xff\xffabc", "ends within element 0"),
        ("BYTES", [20_000], bytes(80_000), "elements of BYTES"),
    ],
)
def test_binary_data(datatype: str, shape: list[int], data: bytes, reason: str) -> None:
    size = 12 if "13" in reason else len(data)
    one = binary_tensor(data[:size], shape, datatype)
    assert reason in refusal(body(one), data)


# --- Mutations --------------------------------------------------------------------------------

GOOD_BODIES = [
    json.dumps(body(tensor(PIXELS, [2, 2, 3], "UINT8"), id="1", parameters={"top_k": 2})).encode(),
    json.dumps(body(tensor(GOOD), outputs=[{"name": "logits"}])).encode(),
    json.dumps(body(tensor(LONG, [60, 80, 3], "UINT8")), separators=(",", ":")).encode(),
]
changes = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.binary(max_size=3) | st.text(string.printable, max_size=3).map(str.encode),
        st.integers(0, 3),
    ),
    max_size=3,
)


@given(st.sampled_from(GOOD_BODIES), changes)
def test_mutated_bodies(text: bytes, changes: list[tuple[int, bytes, int]]) -> None:
    """A mutated body is a request that Python reads the same way, or gets one sentence."""
    changed = bytearray(text)
    for at, new, dropped in changes:
        changed[at : at + dropped] = new
    try:
        request = parse(bytes(changed))
    except (InvalidRequest, InvalidImage) as error:
        assert_sentence(str(error))
        return
    content = json.loads(changed.decode("utf-8-sig"))
    [one] = content["inputs"]
    if one["datatype"] != "BYTES":
        images = [image for image in request.images if isinstance(image, np.ndarray)]
        expected = np.array(one["data"], np.uint8).ravel()
        np.testing.assert_array_equal(np.stack(images).ravel(), expected)
