"""The binary tensor data extension: the same answers as JSON, and one sentence for each mistake."""

import gzip
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from tests.support.app import App
from tests.support.binary_tensors import HEADER, binary_tensor, elements, read, send
from tests.support.clients import COFFEE, LABEL, assert_refused, body, infer, tensor, text
from tests.support.mutations import QUIET, assert_answered
from tests.support.refusals import GOOD

FILE = COFFEE.read_bytes()
PIXELS = np.asarray(Image.open(COFFEE).convert("RGB").resize((60, 45)))
ARRAY = PIXELS.tobytes()
SHAPE = list(PIXELS.shape)
ALL = {"binary_data_output": True}
DTYPES = ["uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64"]


def array_request(**more: Any) -> dict[str, Any]:
    return body(binary_tensor(ARRAY, SHAPE, "UINT8"), **more)


def in_json(app: App, *inputs: Any, **more: Any) -> dict[str, Any]:
    return read(infer(app, body(*inputs, **more)))


@pytest.fixture(scope="module")
def expected(app: App) -> dict[str, Any]:
    """The outputs for PIXELS."""
    return in_json(app, tensor(PIXELS.ravel().tolist(), SHAPE, "UINT8"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_little_endian_integers(app: App, expected: Any, dtype: str) -> None:
    data = PIXELS.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    assert read(send(app, body(binary_tensor(data, SHAPE, dtype.upper())), data)) == expected


def test_int8_holds_half_of_the_values(app: App) -> None:
    dark = PIXELS // 2
    request = body(binary_tensor(ARRAY, SHAPE, "INT8"))
    outputs = read(send(app, request, dark.tobytes()))
    assert outputs == in_json(app, tensor(dark.ravel().tolist(), SHAPE, "UINT8"))
    assert "0 to 255" in assert_refused(send(app, request, b"\xff" * len(ARRAY)))


def test_batch(app: App) -> None:
    batch = np.stack([PIXELS, PIXELS[::-1], PIXELS[:, ::-1]])
    data, shape = batch.tobytes(), list(batch.shape)
    outputs = read(send(app, body(binary_tensor(data, shape, "UINT8")), data))
    assert outputs == in_json(app, tensor(batch.ravel().tolist(), shape, "UINT8"))


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_files(app: App, shape: list[int]) -> None:
    data = elements(FILE, GOOD)
    outputs = read(send(app, body(binary_tensor(data, shape, "BYTES")), data))
    assert outputs == in_json(app, tensor([text(FILE), text(GOOD)]))
    assert outputs["labels"][0] == LABEL


def test_base64_in_a_binary_tensor(app: App) -> None:
    data = elements(text(FILE).encode())
    payload = binary_tensor(data, [1], "BYTES", content_type="base64")
    assert read(send(app, body(payload), data))["labels"][0] == LABEL


def test_the_header_with_json_alone_changes_nothing(app: App, expected: Any) -> None:
    assert read(send(app, body(tensor(PIXELS.ravel().tolist(), SHAPE, "UINT8")))) == expected


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json", "x/y"])
def test_any_content_type(app: App, expected: Any, kind: str) -> None:
    response = send(app, array_request(), ARRAY, **{"Content-Type": kind})
    assert read(response) == expected


def test_generate(app: App, expected: Any) -> None:
    assert read(send(app, array_request(), ARRAY, path="generate")) == expected


def test_binary_outputs(app: App) -> None:
    names = ["scores", "labels", "logits", "embedding"]
    outputs = [{"name": name} for name in names]
    response = send(app, array_request(outputs=outputs, parameters=ALL), ARRAY)
    assert response.headers["Content-Type"] == "application/octet-stream"
    binary = read(response)
    assert list(binary) == names
    assert binary == read(send(app, array_request(outputs=outputs), ARRAY))


@pytest.mark.parametrize("everything", [True, False, None])
@pytest.mark.parametrize("each", [True, False, None])
def test_an_outputs_own_binary_data_overrides_the_requests(
    app: App, everything: bool | None, each: bool | None
) -> None:
    scores: dict[str, Any] = {"name": "scores"}
    if each is not None:
        scores["parameters"] = {"binary_data": each}
    parameters = {} if everything is None else {"binary_data_output": everything}
    request = body(tensor(FILE), outputs=[{"name": "labels"}, scores], parameters=parameters)
    response = infer(app, request)
    length = int(response.headers.get(HEADER, len(response.content)))
    outputs = {o["name"]: o for o in json.loads(response.content[:length])["outputs"]}
    is_binary = {name: "data" not in output for name, output in outputs.items()}
    wanted = everything if each is None else each
    assert is_binary == {"labels": bool(everything), "scores": bool(wanted)}
    assert read(response)["labels"][0] == LABEL


def test_gzip_both_ways(app: App, expected: Any) -> None:
    header = json.dumps(array_request(parameters=ALL)).encode()
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    packed = gzip.compress(header + ARRAY)
    assert read(send(app, packed, length=len(header), **headers)) == expected


# --- Mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", ["", "0", "-1", "x", "1.5", "+5", "1e3", "9" * 40, 10**9])
def test_header_length_is_invalid(app: App, length: Any) -> None:
    assert_refused(send(app, array_request(), ARRAY, length=length))


@pytest.mark.parametrize("shift", [-200, -1, 1, len(ARRAY)])
def test_header_length_is_wrong(app: App, shift: int) -> None:
    length = len(json.dumps(array_request())) + shift
    response = send(app, array_request(), ARRAY, length=max(length, 1))
    assert "JSON" in assert_refused(response)


@pytest.mark.parametrize("size", [0, 1, len(ARRAY) - 1, len(ARRAY) + 1, -1, 2**70, "5", 1.5, True])
def test_binary_data_size_is_wrong(app: App, size: Any) -> None:
    payload = binary_tensor(ARRAY, SHAPE, "UINT8")
    payload["parameters"]["binary_data_size"] = size
    assert_refused(send(app, body(payload), ARRAY))


def test_bytes_are_left_over(app: App) -> None:
    assert "1 bytes more" in assert_refused(send(app, array_request(), ARRAY + b"x"))
    assert_refused(send(app, body(tensor(FILE)), b"x"))


def test_the_header_is_missing(app: App) -> None:
    header = json.dumps(array_request()).encode()
    assert HEADER in assert_refused(infer(app, header))
    assert_refused(infer(app, header + ARRAY))


BAD_TENSORS: dict[str, dict[str, Any]] = {
    "both-kinds-of-data": binary_tensor(ARRAY, SHAPE, "UINT8") | {"data": [1, 2, 3]},
    **{
        f"shape-{shape}": binary_tensor(ARRAY, shape, "UINT8")
        for shape in ([], [1], [45, 60], [45, 60, 4], [-45, -60, 3], [2**40, 2**40, 3])
    },
    **{
        f"datatype-{datatype}": binary_tensor(ARRAY, SHAPE, datatype)
        for datatype in ("FP32", "FP16", "BOOL", "FP64", "BF16", "", "uint8")
    },
}


@pytest.mark.parametrize("payload", BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_bad_tensor(app: App, payload: dict[str, Any]) -> None:
    assert_refused(send(app, body(payload), ARRAY))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1",
        b"\1\0\0",
        b"\5\0\0\0abcd",
        b"\xff\xff\xff\xffabc",
        elements(b""),
        elements(b"", b""),
    ],
)
def test_bad_elements(app: App, data: bytes) -> None:
    assert_refused(send(app, body(binary_tensor(data, [1], "BYTES")), data))


@pytest.mark.parametrize("value", [1, "true"])
def test_binary_data_output_is_a_boolean(app: App, value: Any) -> None:
    response = infer(app, body(tensor(FILE), parameters={"binary_data_output": value}))
    assert "binary_data_output" in assert_refused(response)


def test_shared_memory_is_refused(app: App) -> None:
    payload = tensor(FILE, parameters={"shared_memory_region": "x"})
    del payload["data"]
    assert "memory" in assert_refused(infer(app, body(payload)))


# --- Generated --------------------------------------------------------------------------------

batches = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda size: st.builds(
        lambda seed, channels: np.random.default_rng(seed).integers(
            0, 256, (*size, channels), np.uint8
        ),
        st.integers(0, 1000),
        st.sampled_from([1, 3, 4]),
    )
)


def test_generated_tensors_get_the_answers_of_json(app: App) -> None:
    @settings(QUIET, max_examples=30)
    @given(batches, st.sampled_from(["UINT8", "INT32", "UINT64"]), st.booleans())
    def check(batch: np.ndarray, datatype: str, binary_output: bool) -> None:
        data = batch.astype(np.dtype(datatype.lower()).newbyteorder("<")).tobytes()
        shape, top_k = list(batch.shape), {"top_k": 3}
        request = body(
            binary_tensor(data, shape, datatype),
            parameters=top_k | {"binary_data_output": binary_output},
        )
        outputs = read(send(app, request, data))
        for values in (batch.ravel().tolist(), batch.tolist()):
            assert in_json(app, tensor(values, shape, datatype), parameters=top_k) == outputs

    check()


def test_mutated_requests_are_answered_or_refused(app: App) -> None:
    valid = [
        (json.dumps(array_request(parameters=ALL)).encode(), ARRAY),
        (json.dumps(body(binary_tensor(elements(GOOD), [1], "BYTES"))).encode(), elements(GOOD)),
    ]
    change = st.tuples(st.integers(0, 400), st.binary(max_size=3), st.integers(0, 3))

    @settings(QUIET, max_examples=200)
    @given(st.sampled_from(valid), st.lists(change, max_size=3), st.integers(-2, 2))
    def check(request: Any, changes: list[tuple[int, bytes, int]], shift: int) -> None:
        header, data = request
        changed = bytearray(header + data)
        for at, new, dropped in changes:
            changed[at : at + dropped] = new
        assert_answered(send(app, bytes(changed), length=len(header) + shift))

    check()
