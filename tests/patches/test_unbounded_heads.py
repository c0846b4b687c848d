"""The line and headers of a request are bounded in size and time, on both HTTP servers."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest
import uvicorn
from timm_runtime.rest import bounded_http

from clients import resident
from local import LocalServer

PIECE = 2**16
MOST_GROWTH = 50 * 2**20
HEADS = {
    "an endless address": (b"GET /", b"a" * PIECE),
    "endless headers": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n" * (PIECE // 6)),
    "one endless header": (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"y" * PIECE),
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


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[bounded_http.BoundedHttpProtocol]]:
    monkeypatch.setattr(bounded_http, "HEAD_TIMEOUT", 0.2)
    yield bounded_http.BoundedHttpProtocol


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_does_not_come_is_given_up(
    impatient: type[bounded_http.BoundedHttpProtocol], sent: bytes
) -> None:
    async def scenario() -> bytes:
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            app=lambda *_: None, http=impatient, lifespan="off", log_config=None
        )
        serving = uvicorn.Server(config)
        task = asyncio.create_task(serving.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 20)
        serving.should_exit = True
        await task
        return answer

    assert asyncio.run(scenario()).startswith(b"HTTP/1.1 408 ")
