"""Requests that are too large are refused before they cost time or memory."""

import contextlib
import gzip
import json
from collections.abc import Iterator

import grpc
import pytest

from client.local import LocalServer
from tests.support.app import App
from tests.support.bombs import png_with_size as png
from tests.support.clients import (
    assert_refused,
    body,
    classify,
    infer,
    message,
    request,
    resident,
    stub,
    tensor,
)
from tests.support.refusals import GOOD, JSON, MEGABYTE, array

GZIP = {"Content-Encoding": "gzip", **JSON}
LIMIT = 64 * MEGABYTE


@pytest.mark.exclusive
def test_images_with_too_many_pixels_take_no_memory(server: LocalServer) -> None:
    before = resident(server)
    for _ in range(20):
        assert "too large" in assert_refused(classify(server, png(100_000, 100_000)))
        assert "needs 30000000000 values" in assert_refused(
            infer(server, array([100_000, 100_000, 3]))
        )
    assert resident(server) - before < 150 * MEGABYTE


@pytest.mark.exclusive
@pytest.mark.parametrize(
    ("route", "size"),
    [("infer", 65), pytest.param("classify", 400, marks=pytest.mark.slow)],
)
def test_gzip_bomb(server: LocalServer, route: str, size: int) -> None:
    """A few kilobytes unpack to slightly and to far more than the limit."""
    bomb, url = gzip.compress(bytes(size * MEGABYTE)), f"/v2/models/tinyvit/{route}"
    before = resident(server)
    assert_refused(request(server, "POST", url, data=bomb, headers=GZIP), 413)
    assert_refused(request(server, "POST", url, data=gzip.compress(bomb), headers=GZIP))
    assert resident(server) - before < 300 * MEGABYTE


@pytest.mark.parametrize(("name", "status"), [("tinyvit", 415), ("unknown", 404)])
def test_a_newline_at_the_end_of_the_path(app: App, name: str, status: int) -> None:
    """Routes ignore it, so the limits of a model apply all the same."""
    path = f"/v2/models/{name}/infer%0A"
    response = app.request("POST", path, data=b"x", headers={"Content-Encoding": "br"})
    assert response.status_code == status


PACKED = gzip.compress(json.dumps(body(tensor(GOOD))).encode())
INVALID = {
    "empty": b"",
    "text": b"hello",
    "without-its-end": PACKED[:-4],
    "the-beginning": PACKED[:30],
    "a-byte-more": PACKED + b"x",
    "a-byte-changed": PACKED[:40] + bytes([PACKED[40] ^ 255]) + PACKED[41:],
}


@pytest.mark.parametrize("data", INVALID.values(), ids=INVALID.keys())
def test_invalid_gzip(app: App, data: bytes) -> None:
    assert infer(app, PACKED, headers=GZIP).status_code == 200
    assert "gzip" in assert_refused(infer(app, data, headers=GZIP))


@pytest.mark.parametrize(("route", "chunked"), [("infer", False), ("classify", True)])
def test_body_over_the_limit(server: LocalServer, route: str, chunked: bool) -> None:
    """With a Content-Length, the server refuses before the body; else when it gets too long."""

    def chunks() -> Iterator[bytes]:
        for _ in range(LIMIT // MEGABYTE + 1):
            yield bytes(MEGABYTE)

    data = chunks() if chunked else bytes(LIMIT + 1)
    with contextlib.suppress(OSError):  # the response may come while the client still sends
        url = f"/v2/models/tinyvit/{route}"
        assert_refused(request(server, "POST", url, data=data, headers=JSON), 413)


def test_message_over_the_limit(app: App) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        stub(app).ModelInfer(message(bytes_contents=[bytes(LIMIT + MEGABYTE)]), timeout=60)
    assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
