"""What surrounds the bodies of requests is bounded in size and time, on both HTTP servers, and so
is the time in which an answer is not taken."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import requests
import uvicorn
import uvloop

from client.local import LocalServer
from mlserver_timm.server import http_protocol as bounded_http
from tests.support.clients import resident, until
from tests.support.resource_monitor import MEGABYTE, watching

PIECE = 2**16
MOST_GROWTH = 50 * 2**20
HEADS = {
    "an endless address": (b"GET /", b"a" * PIECE),
    "endless headers": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n" * (PIECE // 6)),
    "one endless header": (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"y" * PIECE),
    "nothing but empty lines": (b"", b"\r\n" * (PIECE // 2)),
}
CHUNKED = (
    b"POST /v2/models/tinyvit/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
)
TRAILERS = {
    "endless trailers": (CHUNKED + b"0\r\n", b"X: y\r\n" * (PIECE // 6)),
    "one endless trailer": (CHUNKED + b"0\r\nX: ", b"y" * PIECE),
    "an endless name of a trailer": (CHUNKED + b"0\r\n", b"y" * PIECE),
    "an endless chunk extension": (CHUNKED + b"2;x=", b"y" * PIECE),
}


def answer_to(port: int, head: bytes, piece: bytes) -> bytes:
    """What a server answers to a head that goes on for 60 MB unless it breaks off."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(head)
            for _ in range(1000):
                connection.sendall(piece)
        with contextlib.suppress(ConnectionResetError):
            return connection.recv(2**16)
    return b""


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("port", ["http_port", "metrics_port"])
def test_a_head_without_end_is_refused(server: LocalServer, kind: str, port: str) -> None:
    before = resident(server)
    answer = answer_to(getattr(server, port), *HEADS[kind])
    # Where more was on its way when the connection was closed, the kernel drops the answer.
    assert answer.startswith(b"HTTP/1.1 431 ") or not answer
    assert resident(server) - before < MOST_GROWTH


@pytest.mark.parametrize("kind", TRAILERS)
def test_a_trailer_without_end_is_refused(server: LocalServer, kind: str) -> None:
    with watching(server) as watch:
        answer = answer_to(server.http_port, *TRAILERS[kind])
    assert answer.startswith(b"HTTP/1.1 431 ") or not answer
    assert watch.growth < MOST_GROWTH
    assert watch.gap < 1
    assert not watch.failures


def test_what_is_within_the_bounds_is_read_in_any_pieces(server: LocalServer) -> None:
    """A head of 60 KB, and as much around each of two chunks of a body."""
    large = b"y" * 60_000
    extended = CHUNKED.replace(b"2\r\n{}", b"1;x=%b\r\n{\r\n1;x=%b\r\n}" % (large, large))
    for request, status in (
        (b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nX: " + large + b"\r\n\r\n", b"200"),
        (extended + b"0\r\nX: " + large + b"\r\n\r\n", b"400"),
    ):
        with socket.create_connection(("127.0.0.1", server.http_port), timeout=30) as connection:
            for start in range(0, len(request), 5000):
                connection.sendall(request[start : start + 5000])
            assert connection.recv(2**16).startswith(b"HTTP/1.1 " + status)


# --- Pipelining -------------------------------------------------------------------------------

LARGE_ANSWER = b"GET /v2/docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
SMALL = b"GET /v2 HTTP/1.1\r\n\r\n"


@pytest.mark.exclusive
def test_requests_behind_an_answer_that_is_not_read(server: LocalServer) -> None:
    """A megabyte of them on each of twenty connections."""
    before = server.output().count("Traceback")
    with contextlib.ExitStack() as stack, watching(server) as watch:
        for _ in range(20):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.http_port))
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                connection.send(LARGE_ANSWER + SMALL * (MEGABYTE // len(SMALL)))
        seen = len(watch.gaps)
        until(lambda: len(watch.gaps) > seen + 20)  # by now it has read what it reads
    assert watch.growth < 100 * MEGABYTE, watch.growth / MEGABYTE
    assert watch.gap < 0.5
    assert not watch.failures
    assert requests.get(f"{server.url}/v2/health/live", timeout=10).ok
    assert server.output().count("Traceback") == before


def test_requests_in_a_row_are_answered_in_order(server: LocalServer) -> None:
    """Though not read before those in front of them are answered; the last has a body."""
    paths = [f"/v2/models/nobody-{number}" for number in range(3000)]
    row = b"".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths)
    length = 2**20
    last = (
        b"POST /v2/models/tinyvit/classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n" % length
    )
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=60) as connection:
        reader = connection.makefile("rb")
        connection.sendall(row)
        connection.sendall(last + bytes(length))
        answers = reader.read().decode()
    for path in paths:
        before, named, answers = answers.partition(f"{path.rpartition('/')[2]} ")
        assert named and before.count("HTTP/1.1 404") == 1, before
    assert answers.count("HTTP/1.1 400") == 1


def test_a_head_that_is_refused_leaves_the_answer_before_it_whole(server: LocalServer) -> None:
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=60) as connection:
        connection.sendall(LARGE_ANSWER + b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000)
        answer = connection.makefile("rb").read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert f"content-length: {len(body)}" in head.decode().lower()


# --- Time -------------------------------------------------------------------------------------

RUNS = [asyncio.run, uvloop.run]
"""As the server runs where uvloop is installed, and where it is not."""
SIZE = 16 * MEGABYTE
Application = Callable[..., Any]


async def large_answer(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"%d" % SIZE)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(SIZE)})


async def small_answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204})
    await send({"type": "http.response.body"})


@asynccontextmanager
async def connected(
    app: Application,
) -> AsyncIterator[tuple[uvicorn.Server, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A server in this process, and a connection to it that takes little at once."""
    listener = socket.create_server(("127.0.0.1", 0))
    http = bounded_http.BoundedHttpProtocol
    config = uvicorn.Config(app=app, http=http, lifespan="off", log_config=None)
    serving = uvicorn.Server(config)
    task = asyncio.create_task(serving.serve(sockets=[listener]))
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)
    connection.connect(listener.getsockname())
    reader, writer = await asyncio.open_connection(sock=connection, limit=PIECE)
    yield serving, reader, writer
    writer.close()
    serving.should_exit = True
    await task


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
@pytest.mark.parametrize("run", RUNS)
def test_a_head_that_does_not_come_is_given_up(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any], sent: bytes
) -> None:
    monkeypatch.setattr(bounded_http, "HEAD_TIMEOUT", 0.2)

    async def scenario() -> bytes:
        async with connected(small_answer) as (_, reader, writer):
            writer.write(sent)
            return await asyncio.wait_for(reader.read(), 20)

    assert run(scenario()).startswith(b"HTTP/1.1 408 ")


def test_an_empty_line_keeps_no_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "HEAD_TIMEOUT", 0.2)

    async def scenario() -> bytes:
        async with connected(small_answer) as (_, reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
            writer.write(b"\r\n")
            return await asyncio.wait_for(reader.read(), 20)

    assert asyncio.run(scenario()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"])
@pytest.mark.parametrize("run", RUNS)
def test_an_answer_that_nobody_takes_is_given_up(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any], closing: bytes
) -> None:
    monkeypatch.setattr(bounded_http, "WRITE_TIMEOUT", 0.3)

    async def scenario() -> bytes:
        async with connected(large_answer) as (serving, reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + closing + b"\r\n")
            assert await reader.read(1)
            deadline = time.monotonic() + 20
            while serving.server_state.connections:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
            rest = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := await reader.read(MEGABYTE):
                    rest += piece
            return rest

    assert len(run(scenario())) < SIZE


@pytest.mark.parametrize("run", RUNS)
def test_an_answer_that_is_taken_slowly_is_not(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
) -> None:
    """Over several times as long as it would be waited for if nothing was taken."""
    monkeypatch.setattr(bounded_http, "WRITE_TIMEOUT", 0.5)

    async def scenario() -> int:
        async with connected(large_answer) as (_, reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            taken = 0
            while taken < SIZE:
                taken += len(await reader.readexactly(SIZE // 128))
                await asyncio.sleep(0.02)
            return taken

    assert run(scenario()) == SIZE
