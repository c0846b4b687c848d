"""The binary tensor data extension: the same answers as JSON's, and one sentence for mistakes."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from client.local import LocalServer
from tests.support.binary_tensors import HEADER, binary_tensor, elements, read, send
from tests.support.clients import (
    COFFEE,
    LABEL,
    assert_refused,
    assert_sane,
    body,
    infer,
    tensor,
    text,
)
from tests.support.mutations import QUIET, assert_answered
from tests.support.refusals import GOOD

FILE = COFFEE.read_bytes()
PIXELS = np.asarray(Image.open(COFFEE).convert("RGB").resize((60, 45)))
ARRAY = PIXELS.tobytes()
SHAPE = list(PIXELS.shape)
ALL = {"binary_data_output": True}


def of_array(**more: Any) -> dict[str, Any]:
    return body(binary_tensor(ARRAY, SHAPE, "UINT8"), **more)


def in_json(server: LocalServer, *inputs: Any, **more: Any) -> dict[str, Any]:
    return read(infer(server, body(*inputs, **more)))


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64"]
)
def test_arrays(either_server: LocalServer, dtype: str) -> None:
    """Little-endian, of every integer type."""
    data = PIXELS.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    got = read(send(either_server, body(binary_tensor(data, SHAPE, dtype.upper())), data))
    assert got == in_json(either_server, tensor(PIXELS.ravel().tolist(), SHAPE, "UINT8"))


def test_int8(server: LocalServer) -> None:
    """Which holds only half of what a pixel may be."""
    dark = PIXELS // 2
    got = read(send(server, body(binary_tensor(ARRAY, SHAPE, "INT8")), dark.tobytes()))
    assert got == in_json(server, tensor(dark.ravel().tolist(), SHAPE, "UINT8"))
    bright = send(server, body(binary_tensor(ARRAY, SHAPE, "INT8")), b"\xff" * len(ARRAY))
    assert "0 to 255" in assert_refused(bright)


def test_several_arrays(either_server: LocalServer) -> None:
    batch = np.stack([PIXELS, PIXELS[::-1], PIXELS[:, ::-1]])
    data = batch.tobytes()
    got = read(send(either_server, body(binary_tensor(data, list(batch.shape), "UINT8")), data))
    assert got == in_json(either_server, tensor(batch.ravel().tolist(), list(batch.shape), "UINT8"))


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_files(either_server: LocalServer, shape: list[int]) -> None:
    data = elements(FILE, GOOD)
    got = read(send(either_server, body(binary_tensor(data, shape, "BYTES")), data))
    assert got == in_json(either_server, tensor([text(FILE), text(GOOD)]))
    assert got["labels"][0] == LABEL


def test_base64_in_binary(server: LocalServer) -> None:
    data = elements(text(FILE).encode())
    one = binary_tensor(data, [1], "BYTES", content_type="base64")
    assert read(send(server, body(one), data))["labels"][0] == LABEL


def test_json_with_the_header(either_server: LocalServer) -> None:
    """Where the JSON is all there is, the header changes nothing."""
    one = tensor(PIXELS.ravel().tolist(), SHAPE, "UINT8")
    assert read(send(either_server, body(one))) == in_json(either_server, one)


def test_any_content_type(server: LocalServer) -> None:
    for kind in ("application/octet-stream", "application/json", "application/vnd.x"):
        answer = send(server, of_array(), ARRAY, **{"Content-Type": kind})
        assert answer.status_code == 200, answer.text


def test_binary_outputs(either_server: LocalServer) -> None:
    names = ["scores", "labels", "logits", "embedding"]
    outputs = [{"name": name} for name in names]
    answer = send(either_server, of_array(outputs=outputs, parameters=ALL), ARRAY)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    got = read(answer)
    assert list(got) == names
    plain = in_json(either_server, tensor(PIXELS.ravel().tolist(), SHAPE, "UINT8"), outputs=outputs)
    assert got == plain


@pytest.mark.parametrize("everything", [True, False, None])
@pytest.mark.parametrize("each", [True, False, None])
def test_which_outputs_are_binary(
    server: LocalServer, everything: bool | None, each: bool | None
) -> None:
    """An output's own `binary_data` counts, else the request's `binary_data_output`."""
    scores: dict[str, Any] = {"name": "scores"}
    if each is not None:
        scores["parameters"] = {"binary_data": each}
    parameters = {} if everything is None else {"binary_data_output": everything}
    request = body(tensor(FILE), outputs=[{"name": "labels"}, scores], parameters=parameters)
    answer = infer(server, request)
    length = int(answer.headers.get(HEADER, len(answer.content)))
    described = {o["name"]: o for o in json.loads(answer.content[:length])["outputs"]}
    for name, wanted in (("labels", everything), ("scores", everything if each is None else each)):
        assert ("data" in described[name]) is not bool(wanted)
    assert read(answer)["labels"][0] == LABEL


def test_all_outputs_by_default(server: LocalServer) -> None:
    got = read(infer(server, body(tensor(FILE), parameters=ALL)))
    assert got == in_json(server, tensor(FILE))


def test_gzip_both_ways(either_server: LocalServer) -> None:
    import gzip

    header = json.dumps(of_array(parameters=ALL)).encode()
    packed = gzip.compress(header + ARRAY)
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    got = read(send(either_server, packed, length=len(header), **headers))
    assert got == read(send(either_server, of_array(), ARRAY))


def test_versions_and_generate(server: LocalServer) -> None:
    expected = read(send(server, of_array(), ARRAY))
    assert read(send(server, of_array(), ARRAY, path="generate")) == expected


# --- Mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", ["", "0", "-1", "x", "1.5", "+5", "1e3", "9" * 40, 10**9])
def test_header_length(either_server: LocalServer, length: Any) -> None:
    assert_refused(send(either_server, of_array(), ARRAY, length=length))


def test_header_length_beside_the_json(either_server: LocalServer) -> None:
    right = len(json.dumps(of_array()))
    for length in (1, right - 1, right + 1, right + len(ARRAY)):
        assert "JSON" in assert_refused(send(either_server, of_array(), ARRAY, length=length))


@pytest.mark.parametrize("size", [0, 1, len(ARRAY) - 1, len(ARRAY) + 1, -1, 2**70, "5", 1.5, True])
def test_size(either_server: LocalServer, size: Any) -> None:
    one = binary_tensor(ARRAY, SHAPE, "UINT8")
    one["parameters"]["binary_data_size"] = size
    assert_refused(send(either_server, body(one), ARRAY))


def test_bytes_left_over(either_server: LocalServer) -> None:
    assert "1 bytes more" in assert_refused(send(either_server, of_array(), ARRAY + b"x"))
    assert_refused(send(either_server, body(tensor(FILE)), b"x"))


def test_without_the_header(either_server: LocalServer) -> None:
    header = json.dumps(of_array()).encode()
    assert HEADER in assert_refused(infer(either_server, header))
    assert_refused(infer(either_server, header + ARRAY))


def test_both_kinds_of_data(server: LocalServer) -> None:
    one = binary_tensor(ARRAY, SHAPE, "UINT8") | {"data": [1, 2, 3]}
    assert "both" in assert_refused(send(server, body(one), ARRAY))


@pytest.mark.parametrize(
    "shape", [[], [1], [45, 60], [45, 60, 4], [-45, -60, 3], [2**40, 2**40, 3]]
)
def test_shape(either_server: LocalServer, shape: list[int]) -> None:
    assert_refused(send(either_server, body(binary_tensor(ARRAY, shape, "UINT8")), ARRAY))


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "BOOL", "FP64", "BF16", "", "uint8"])
def test_datatype(either_server: LocalServer, datatype: str) -> None:
    assert_refused(send(either_server, body(binary_tensor(ARRAY, SHAPE, datatype)), ARRAY))


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
def test_elements(either_server: LocalServer, data: bytes) -> None:
    assert_refused(send(either_server, body(binary_tensor(data, [1], "BYTES")), data))


@pytest.mark.parametrize("value", [1, "true", None])
def test_binary_output_is_a_boolean(server: LocalServer, value: Any) -> None:
    answer = infer(server, body(tensor(FILE), parameters={"binary_data_output": value}))
    if value is None:
        assert answer.status_code == 200
    else:
        assert "binary_data_output" in assert_refused(answer)


def test_shared_memory(server: LocalServer) -> None:
    one = tensor(FILE, parameters={"shared_memory_region": "x"})
    assert "memory" in assert_refused(infer(server, body({k: one[k] for k in one if k != "data"})))


# --- Generated --------------------------------------------------------------------------------

pictures = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda size: st.sampled_from([1, 3, 4]).flatmap(
        lambda channels: st.builds(
            lambda seed: np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8),
            st.integers(0, 1000),
        )
    )
)


def test_valid_ones_equal_json(either_server: LocalServer) -> None:
    @settings(QUIET, max_examples=60)
    @given(pictures, st.sampled_from(["UINT8", "INT32", "UINT64"]), st.booleans())
    def check(batch: np.ndarray, datatype: str, both: bool) -> None:
        data = batch.astype(np.dtype(datatype.lower()).newbyteorder("<")).tobytes()
        parameters = {"top_k": 3, "binary_data_output": both}
        shape = list(batch.shape)
        answer = send(
            either_server, body(binary_tensor(data, shape, datatype), parameters=parameters), data
        )
        plain = tensor(batch.ravel().tolist(), shape, datatype)
        nested = tensor(batch.tolist(), shape, datatype)
        expected = in_json(either_server, plain, parameters={"top_k": 3})
        assert read(answer) == expected
        assert in_json(either_server, nested, parameters={"top_k": 3}) == expected

    check()


def test_mutated_ones(either_server: LocalServer) -> None:
    """Bytes changed, dropped or added anywhere, and a header that says something else."""
    good = [
        (json.dumps(of_array(parameters=ALL)).encode(), ARRAY),
        (json.dumps(body(binary_tensor(elements(GOOD), [1], "BYTES"))).encode(), elements(GOOD)),
    ]

    @settings(QUIET, max_examples=300)
    @given(
        st.sampled_from(good),
        st.lists(
            st.tuples(st.integers(0, 400), st.binary(max_size=3), st.integers(0, 3)), max_size=3
        ),
        st.integers(-2, 2),
    )
    def check(
        request: tuple[bytes, bytes], changes: list[tuple[int, bytes, int]], shift: int
    ) -> None:
        header, data = request
        changed = bytearray(header + data)
        for at, new, dropped in changes:
            changed[at : at + dropped] = new
        assert_answered(send(either_server, bytes(changed), length=len(header) + shift))

    check()
    assert_sane(either_server)
