"""Bombs and floods of bytes are refused before they cost time or memory."""

import contextlib
import gzip
import json
import time
from collections.abc import Iterator

import grpc
import pytest
import requests

from client.local import LocalServer
from tests.support.clients import (
    assert_refused,
    assert_sane,
    body,
    classify,
    infer,
    message,
    resident,
    stub,
    tensor,
)
from tests.support.refusals import GOOD, JSON, MEGABYTE, array, png


def test_bombs_take_neither_time_nor_memory(sane_server: LocalServer) -> None:
    assert_sane(sane_server)
    before = resident(sane_server)
    for _ in range(20):
        started = time.monotonic()
        assert "too large" in assert_refused(classify(sane_server, png(100_000, 100_000)))
        assert "too large" in assert_refused(infer(sane_server, array([100_000, 100_000, 3])))
        assert time.monotonic() - started < 5
    assert resident(sane_server) - before < 150 * MEGABYTE


@pytest.fixture(scope="module")
def bombs() -> list[bytes]:
    """A few kilobytes that unpack to a little and to far more than is accepted."""
    return [gzip.compress(bytes(size * MEGABYTE)) for size in (65, 400)]


@pytest.mark.parametrize("route", ["infer", "classify"])
def test_gzip_bomb(sane_server: LocalServer, bombs: list[bytes], route: str) -> None:
    url = f"{sane_server.url}/v2/models/tinyvit/{route}"
    headers = {"Content-Encoding": "gzip", **JSON}
    before = resident(sane_server)
    for bomb in bombs:
        assert_refused(requests.post(url, data=bomb, headers=headers, timeout=60), 413)
    twice = gzip.compress(bombs[0])
    assert_refused(requests.post(url, data=twice, headers=headers, timeout=60))
    assert resident(sane_server) - before < 300 * MEGABYTE


def test_bad_gzip(sane_server: LocalServer) -> None:
    good = gzip.compress(json.dumps(body(tensor(GOOD))).encode())
    headers = {"Content-Encoding": "gzip", **JSON}
    assert infer(sane_server, good, headers=headers).status_code == 200
    for data in (b"", b"hello", good[:-4], good[:30], good + b"x", good[:40] + b"x" + good[41:]):
        assert "gzip" in assert_refused(infer(sane_server, data, headers=headers))


def test_body_too_large(sane_server: LocalServer) -> None:
    """By its length before it is sent, and by what comes where no length is told."""
    data = bytes(65 * MEGABYTE)

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(data), MEGABYTE):
            yield data[start : start + MEGABYTE]

    for route in ("infer", "classify"):
        url = f"{sane_server.url}/v2/models/tinyvit/{route}"
        for content in (data, pieces()):
            with contextlib.suppress(requests.ConnectionError):  # told while still sending
                assert_refused(requests.post(url, data=content, headers=JSON, timeout=60), 413)


def test_message_too_large(sane_server: LocalServer) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        stub(sane_server).ModelInfer(message(bytes_contents=[bytes(65 * MEGABYTE)]), timeout=60)
    assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
