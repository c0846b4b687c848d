"""Bodies made to be dear to read are refused before they cost time, memory or other answers."""

import gzip
import io
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from client.local import LocalServer
from tests.support.clients import assert_refused, assert_sane, text as base64_text
from tests.support.resource_monitor import MEGABYTE, watching

LARGE = 60 * MEGABYTE
GOOD_TENSOR = '{"name":"payload","shape":[1,1,3],"datatype":"UINT8","data":[1,2,3]}'
GOOD_REQUEST = '{"inputs":[' + GOOD_TENSOR + "]"
TENSOR = '{"inputs":[{"name":"payload","shape":%s,"datatype":"%s","data":%s}]}'


def many(before: str, item: str, after: str, size: int = LARGE) -> bytes:
    """A body of about `size` bytes, most of it the same item again and again."""
    return (before + ",".join([item] * (size // (len(item) + 1))) + after).encode()


def nested(opening: str, closing: str) -> bytes:
    depth = LARGE // (len(opening) + len(closing))
    return ('{"inputs":' + opening * depth + closing * depth + "}").encode()


def data(datatype: str, item: str) -> bytes:
    before, after = (TENSOR % ("[3]", datatype, "[%]")).split("%")
    return many(before, item, after)


def binary(header: Any, *tensors: bytes) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(header).encode()
    return b"".join([text, *tensors]), {"Inference-Header-Content-Length": str(len(text))}


def elements(count: int) -> tuple[bytes, dict[str, str]]:
    tensor = {"name": "payload", "shape": [count], "datatype": "BYTES"}
    tensor["parameters"] = {"binary_data_size": 4 * count}
    return binary({"inputs": [tensor]}, struct.pack("<I", 0) * count)


JSON_BOMBS: dict[str, Callable[[], bytes]] = {
    "empty-inputs": lambda: many('{"inputs":[', "{}", "]}"),
    "empty-inputs-in-4-megabytes": lambda: many('{"inputs":[', "{}", "]}", 4 * MEGABYTE),
    "inputs-of-numbers": lambda: many('{"inputs":[', "1", "]}"),
    "inputs-of-text": lambda: many('{"inputs":[', '""', "]}"),
    "inputs-of-lists": lambda: many('{"inputs":[', "[]", "]}"),
    "valid-inputs": lambda: many('{"inputs":[', GOOD_TENSOR, "]}", 600_000 * 70),
    "shape-of-text": lambda: many('{"inputs":[{"name":"payload","shape":[', '""', "]}]}"),
    "shape-of-numbers": lambda: many('{"inputs":[{"name":"payload","shape":[', "1", "]}]}"),
    "outputs": lambda: many(GOOD_REQUEST + ',"outputs":[', "{}", "]}"),
    "parameters": lambda: many(GOOD_REQUEST + ',"parameters":{', '"a":1', "}}"),
    "fields": lambda: many("{", '"a":1', "}"),
    "data-of-objects": lambda: data("UINT8", "{}"),
    "data-of-lists": lambda: data("UINT8", "[]"),
    "data-of-text": lambda: data("BYTES", '"a"'),
    "deep-lists": lambda: nested("[", "]"),
    "deep-objects": lambda: nested('{"a":', "}"),
    "quotation-marks": lambda: b'{"inputs":"' + rb"\"" * (LARGE // 2) + b'"}',
    "backslashes": lambda: b'{"inputs":"' + b"\\" * LARGE + b'"}',
    "one-number": lambda: b'{"inputs":[' + b"1" * LARGE + b"]}",
    "one-name": lambda: b'{"inputs":[{"name":"' + b"x" * LARGE + b'"}]}',
    "no-json": lambda: b"[" * LARGE,
}


def refuse(
    server: LocalServer, data: bytes, route: str = "infer", status: int = 400, **headers: str
) -> None:
    headers = {"Content-Type": "application/json", **headers}
    url = f"{server.url}/v2/models/tinyvit/{route}"
    with watching(server) as watch:
        assert_refused(requests.post(url, data=data, headers=headers, timeout=60), status)
    assert watch.growth < 200 * MEGABYTE, watch.growth / MEGABYTE
    assert watch.slowest < 1
    assert watch.gap < 1
    assert not watch.failures


SLOW = {"data-of-lists", "data-of-objects", "deep-lists", "inputs-of-lists"}
"""Others wait for a fourth of a second, and beside other tests for all of it."""


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=[pytest.mark.exclusive] if name in SLOW else [])
        for name, make in JSON_BOMBS.items()
    ],
)
def test_json(either_server: LocalServer, make: Callable[[], bytes]) -> None:
    refuse(either_server, make())


@pytest.mark.parametrize("name", ["empty-inputs-in-4-megabytes", "empty-inputs"])
def test_gzip(server: LocalServer, name: str) -> None:
    """In kilobytes; what unpacks to a hundred times its size is not even unpacked."""
    packed = gzip.compress(JSON_BOMBS[name]())
    assert len(packed) < 100_000
    status = 413 if name == "empty-inputs" else 400
    refuse(server, packed, status=status, **{"Content-Encoding": "gzip"})


@pytest.mark.parametrize("model", ["nobody", "tinyvit/versions/nobody"])
@pytest.mark.parametrize("verb", ["infer", "generate", "infer_stream", "generate_stream"])
def test_for_a_model_that_there_is_not(server: LocalServer, model: str, verb: str) -> None:
    """Nothing of it is read."""
    url = f"{server.url}/v2/models/{model}/{verb}"
    bomb = JSON_BOMBS["empty-inputs-in-4-megabytes"]()
    with watching(server) as watch:
        answer = requests.post(url, data=bomb, timeout=60)
    assert answer.status_code == 404
    assert "not found" in answer.json()["error"]
    assert watch.growth < 50 * MEGABYTE
    assert watch.gap < 1


def test_for_the_repository_api(server: LocalServer) -> None:
    bomb = JSON_BOMBS["empty-inputs-in-4-megabytes"]()
    for body, headers in ((bomb, {}), (gzip.compress(bomb), {"Content-Encoding": "gzip"})):
        with watching(server) as watch:
            url = f"{server.url}/v2/repository/index"
            answer = requests.post(url, data=body, headers=headers, timeout=60)
        assert answer.status_code == 413
        assert "at most 65536 bytes" in answer.json()["error"]
        assert watch.growth < 50 * MEGABYTE
        assert watch.gap < 1


def test_binary_elements(either_server: LocalServer) -> None:
    data, headers = elements(LARGE // 4)
    refuse(either_server, data, **headers)


def test_header_of_a_binary_body(either_server: LocalServer) -> None:
    data = JSON_BOMBS["empty-inputs"]()
    headers = {"Inference-Header-Content-Length": str(len(data))}
    refuse(either_server, data, **headers)


def test_parts_of_a_form(server: LocalServer) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n\r\n'
    data = part * (LARGE // len(part)) + b"--x--"
    refuse(server, data, "classify", **{"Content-Type": "multipart/form-data; boundary=x"})


@pytest.mark.exclusive
def test_form_without_an_end(server: LocalServer) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n'
    data = head + b"\r\n--" * (LARGE // 4)
    refuse(server, data, "classify", **{"Content-Type": "multipart/form-data; boundary=x"})


def pixels(shape: str) -> bytes:
    """A body with as many pixels as fit into it, in one list or nested."""
    row = "[" + ",".join(["200"] * 3) + "]" if shape == "nested" else "200,200,200"
    rows = LARGE // (len(row) + 1)
    height, width = 1000, rows // 1000
    line = ",".join([row] * width)
    text = ",".join([f"[{line}]" if shape == "nested" else line] * height)
    return (TENSOR % (f"[{height},{width},3]", "UINT8", f"[{text}]")).encode()


def file() -> bytes:
    """A body with a file of 44 megabytes."""
    noise = np.random.default_rng(0).integers(0, 256, (3840, 3840, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", compress_level=0)
    return (TENSOR % ("[1]", "BYTES", json.dumps([base64_text(buffer.getvalue())]))).encode()


@pytest.mark.exclusive
@pytest.mark.parametrize("kind", ["flat", "nested", "file"])
def test_a_valid_body_of_60_megabytes(either_server: LocalServer, kind: str) -> None:
    """It is answered, and nobody waits for it."""
    data = file() if kind == "file" else pixels(kind)
    assert 56 * MEGABYTE < len(data) < 64 * MEGABYTE
    url = f"{either_server.url}/v2/models/tinyvit/infer"
    with watching(either_server) as watch:
        answer = requests.post(url, data=data, timeout=60)
    assert answer.status_code == 200, answer.text
    assert watch.gap < 0.3
    assert not watch.failures


def test_sane_afterwards(either_server: LocalServer) -> None:
    """The one traceback is MLServer's own, of a name that no model has, in another test."""
    tracebacks = either_server.output().split("Traceback")[1:]
    assert not [each for each in tracebacks if "ModelNotFound" not in each]
    assert_sane(either_server)
