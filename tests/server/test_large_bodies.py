"""Bodies of 60 MB cost other clients neither time nor memory, whether refused or answered.

tests/unit/protocol/test_memory.py reads bodies of every kind within limits of memory and CPU time.
"""

import base64
import gzip
import json
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.local import LocalServer
from tests.support.binary_tensors import HEADER, binary_tensor, elements
from tests.support.clients import (
    CAT,
    COFFEE,
    assert_refused,
    assert_sane,
    body,
    classify,
    encoded,
    infer,
    request,
    text,
)
from tests.support.processes import page_faults
from tests.support.refusals import JSON
from tests.support.resource_monitor import MEGABYTE, resource_monitor

pytestmark = [pytest.mark.slow, pytest.mark.exclusive]

LARGE = 60 * MEGABYTE
MODEL = "/v2/models/tinyvit"
REQUEST = '{"inputs":[{"name":"payload","shape":%s,"datatype":"%s","data":%s}]}'
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
PART = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n'


def many(before: str, item: str, after: str, size: int = LARGE) -> bytes:
    """Return a body of about `size` bytes that repeats an item."""
    return (before + ",".join([item] * (size // (len(item) + 1))) + after).encode()


JSON_BODIES: dict[str, Callable[[], bytes]] = {
    "empty-inputs": lambda: many('{"inputs":[', "{}", "]}"),
    "empty-inputs-in-4-megabytes": lambda: many('{"inputs":[', "{}", "]}", 4 * MEGABYTE),
    "data-of-objects": lambda: many((REQUEST % ("[3]", "UINT8", "["))[:-3], "{}", "]}]}"),
    "deep-lists": lambda: b'{"inputs":' + b"[" * (LARGE // 2) + b"]" * (LARGE // 2) + b"}",
    "escaped-base64": lambda: (
        (REQUEST % ("[1]", "BYTES", '["%"]')).encode().replace(b"%", b"\\u0041" * (LARGE // 6))
    ),
}


def assert_refused_harmlessly(
    server: LocalServer,
    content: bytes,
    route: str = "infer",
    status: int = 400,
    headers: Any = JSON,
    megabytes: float = 200,
) -> str:
    """Assert the status, and that the refusal costs others nothing; return the error."""
    url = route if route.startswith("/") else f"{MODEL}/{route}"
    with resource_monitor(server) as watch:
        response = request(server, "POST", url, data=content, headers=headers)
    watch.assert_harmless(megabytes)
    assert response.status_code == status, response.text[:500]
    return response.json()["error"]


@pytest.mark.parametrize("name", JSON_BODIES)
def test_json(server: LocalServer, name: str) -> None:
    assert_refused_harmlessly(server, JSON_BODIES[name]())


@pytest.mark.parametrize(
    ("name", "status"), [("empty-inputs-in-4-megabytes", 400), ("empty-inputs", 413)]
)
def test_gzip(server: LocalServer, name: str, status: int) -> None:
    """The server does not unpack a body beyond 16 MiB and a hundred times its size."""
    packed = gzip.compress(JSON_BODIES[name]())
    headers = {**JSON, "Content-Encoding": "gzip"}
    assert_refused_harmlessly(server, packed, status=status, headers=headers)


@pytest.mark.parametrize("model", ["nobody", "tinyvit/versions/nobody"])
@pytest.mark.parametrize("verb", ["infer", "generate_stream"])
def test_the_body_for_an_unknown_model_is_not_read(
    server: LocalServer, model: str, verb: str
) -> None:
    content = JSON_BODIES["empty-inputs-in-4-megabytes"]()
    route = f"/v2/models/{model}/{verb}"
    error = assert_refused_harmlessly(server, content, route, status=404, megabytes=50)
    assert "not found" in error


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_the_repository_api_has_a_small_limit(server: LocalServer, encoding: str) -> None:
    content = JSON_BODIES["empty-inputs-in-4-megabytes"]()
    content = gzip.compress(content) if encoding == "gzip" else content
    headers = {"Content-Encoding": encoding}
    route = "/v2/repository/index"
    error = assert_refused_harmlessly(server, content, route, 413, headers, megabytes=50)
    assert "at most 65536 bytes" in error


def test_elements_of_a_binary_tensor(server: LocalServer) -> None:
    empty = elements(b"") * (LARGE // 4)
    head = json.dumps(body(binary_tensor(empty, [LARGE // 4], "BYTES"))).encode()
    assert_refused_harmlessly(server, head + empty, headers={HEADER: str(len(head))})


def test_form(server: LocalServer) -> None:
    content = PART + b"\r\n--" * (LARGE // 4)
    assert_refused_harmlessly(server, content, "classify", headers=FORM)


# --- Valid ones -------------------------------------------------------------------------------


def pixels(is_nested: bool) -> bytes:
    """Return a request with as many pixels as fit into it."""
    pixel = "[200,200,200]" if is_nested else "200,200,200"
    height, width = 1000, LARGE // (len(pixel) + 1) // 1000
    line = ",".join([pixel] * width)
    rows = ",".join([f"[{line}]" if is_nested else line] * height)
    return (REQUEST % (f"[{height},{width},3]", "UINT8", f"[{rows}]")).encode()


def file() -> bytes:
    """Return a request with a PNG of 44 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (3840, 3840, 3), np.uint8)
    png = encoded(Image.fromarray(noise), "PNG", compress_level=0)
    return (REQUEST % ("[1]", "BYTES", json.dumps([text(png)]))).encode()


VALID = {"flat": lambda: pixels(False), "nested": lambda: pixels(True), "file": file}


@pytest.mark.parametrize("name", VALID)
def test_a_valid_body_does_not_delay_others(server: LocalServer, name: str) -> None:
    content = VALID[name]()
    assert 56 * MEGABYTE < len(content) < 64 * MEGABYTE
    with resource_monitor(server) as watch:
        response = infer(server, content)
    assert response.status_code == 200, response.text
    assert watch.gap < 0.3 and not watch.failures


def test_a_large_file_in_lines_of_base64(server: LocalServer) -> None:
    """MIME and the command `base64` break lines. Others wait for less than one pass over the body
    takes: 0.3 s of CPU time where this was written."""
    image = COFFEE.read_bytes()
    lines = base64.encodebytes(image + bytes(40 * MEGABYTE)).decode()
    content = json.dumps({"inputs": lines}).encode()
    started = time.process_time()
    base64.b64decode(json.loads(content)["inputs"])
    one_pass = time.process_time() - started
    with resource_monitor(server) as watch:
        response = classify(server, content, headers=JSON)
    assert response.json() == classify(server, image).json()
    watch.assert_harmless(gap=one_pass)


def test_memory_is_kept_for_the_next_request(server: LocalServer) -> None:
    """2 MB of JSON are 500 pages, in several copies."""
    image = np.asarray(Image.open(CAT))
    shape, values = list(image.shape), image.ravel().tolist()
    content = (REQUEST % (shape, "UINT8", values)).encode()
    for count in (20, 20):
        before = page_faults(server.process.pid)
        for _ in range(count):
            assert infer(server, content).status_code == 200
    assert page_faults(server.process.pid) - before < 100 * count


# --- Unfinished and repeated ones -------------------------------------------------------------


def unfinished(server: LocalServer, verb: str) -> socket.socket:
    """Return a connection with a request without its last byte."""
    connection = socket.create_connection(("127.0.0.1", server.http_port), timeout=60)
    head = f"POST {MODEL}/{verb} HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n"
    connection.sendall(head.encode() + bytes(LARGE - 1))
    return connection


def test_60_megabytes_of_base64_in_place_of_a_file(server: LocalServer) -> None:
    """The server decodes the text before it can look at the image."""
    content = base64.b64encode(bytes(LARGE * 3 // 4))
    error = assert_refused_harmlessly(server, content, "classify", headers={}, megabytes=250)
    assert "not a supported image" in error


def is_refused(connection: socket.socket) -> bool:
    """Return whether the server has answered 503; a request that it holds has no answer yet."""
    connection.settimeout(0.1)
    try:
        return b" 503 " in connection.recv(2**12)
    except TimeoutError:
        return False


def test_all_bodies_together_hold_128_megabytes(server: LocalServer) -> None:
    with resource_monitor(server) as watch, ExitStack() as stack:
        connections = [
            stack.enter_context(unfinished(server, ("infer", "classify")[number % 2]))
            for number in range(20)
        ]
        refused = sum(map(is_refused, connections))
    assert refused >= 18
    watch.assert_harmless()


VALUES = b'"shape":[2000,2000,1],"data":[' + b"1," * (2000 * 2000 - 1) + b"1]"
GOOD = b'{"inputs":[{"name":"payload","datatype":"UINT8",' + VALUES + b"}]}"
INVALID = {
    "not JSON": GOOD[:-1],
    "a value too large": GOOD.replace(b"1]}]}", b"256]}]}"),
}


@pytest.mark.parametrize("name", INVALID)
def test_nothing_of_repeated_invalid_requests_stays(server: LocalServer, name: str) -> None:
    assert infer(server, GOOD).status_code == 200
    with resource_monitor(server) as watch:
        for _ in range(12):
            assert_refused(infer(server, INVALID[name]))
    assert watch.growth < 250 * MEGABYTE, f"{watch.growth / MEGABYTE:.0f} MB"
    assert_sane(server)
