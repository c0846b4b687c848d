"""The bodies of all requests together have limits of memory and time."""

import asyncio
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import requests
import uvicorn
from mlserver.errors import MLServerError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from client.local import free_ports
from mlserver_timm.errors import BodiesFull
from mlserver_timm.server.error_handlers import refusal
from mlserver_timm.server.limits import BodyBudget
from mlserver_timm.server.middleware import RequestLimitsMiddleware
from tests.support.clients import until

KILOBYTE = 2**10


class Application:
    """Answers with the size of the body; on /kept, once `go_on` is set."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.kept = 0

    async def length(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    async def keep(self, request: Request) -> PlainTextResponse:
        body = await request.body()
        self.kept += 1
        while not self.go_on.is_set():
            await asyncio.sleep(0.01)
        return PlainTextResponse(str(len(body)))


async def refused(request: Request, error: Any) -> Any:
    return refusal(error)


@contextmanager
def served(application: Application, **limits: float) -> Iterator[int]:
    """Yield the port of a server with these limits."""
    usual = {"max_held_bytes": 100 * KILOBYTE, "body_timeout": 60}
    limits = {**usual, **limits}
    middleware: Any = RequestLimitsMiddleware
    app = Starlette(
        routes=[
            Route("/", application.length, methods=["POST"]),
            Route("/kept", application.keep, methods=["POST"]),
        ],
        middleware=[Middleware(middleware, max_body_bytes=lambda _: 64 * KILOBYTE, **limits)],
        exception_handlers={MLServerError: refused},
    )
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield port
    finally:
        application.go_on.set()
        server.should_exit = True
        thread.join()


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def port(application: Application) -> Iterator[int]:
    with served(application) as port:
        yield port


class Unfinished:
    """A connection with a partly sent request."""

    def __init__(self, port: int, total: int, sent: int, path: str = "/") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {total}\r\n\r\n"
        self._socket.sendall(head.encode())
        self.send(sent)

    def send(self, size: int) -> None:
        self._socket.sendall(bytes(size))

    def answer(self) -> tuple[int, str]:
        """Return the status, and the text or the JSON's `error`."""
        self._socket.settimeout(20)
        head, _, text = self._socket.recv(KILOBYTE).decode().partition("\r\n\r\n")
        text = json.loads(text)["error"] if text.startswith("{") else text
        return int(head.split()[1]), text

    def ended(self) -> bool:
        """Return whether the server has closed the connection."""
        self._socket.settimeout(20)
        return self._socket.recv(1) == b""

    def __enter__(self) -> "Unfinished":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def length_of(port: int, size: int, **headers: str) -> requests.Response:
    return requests.post(f"http://127.0.0.1:{port}/", bytes(size), headers=headers, timeout=20)


def test_the_largest_unfinished_body_is_dropped(port: int) -> None:
    with Unfinished(port, 64_000, 60_000) as large, Unfinished(port, 40_000, 30_000) as small:
        assert length_of(port, 30_000).text == "30000"
        status, sentence = large.answer()
        assert status == 503
        assert "would exceed 102400 bytes" in sentence
        small.send(10_000)
        assert small.answer() == (200, "40000")


def test_a_body_that_would_be_the_largest_is_refused_itself(port: int) -> None:
    with Unfinished(port, 40_000, 30_000), Unfinished(port, 40_000, 30_000) as other:
        assert length_of(port, 50_000).status_code == 503
        other.send(10_000)
        assert other.answer() == (200, "40000")


def test_complete_bodies_are_never_dropped(port: int, application: Application) -> None:
    with ExitStack() as stack:
        kept = [stack.enter_context(Unfinished(port, 45_000, 45_000, "/kept")) for _ in range(2)]
        until(lambda: application.kept == 2)
        refused = length_of(port, 20_000)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"
        assert length_of(port, 10_000).ok
        application.go_on.set()
        assert [each.answer() for each in kept] == 2 * [(200, "45000")]
    assert length_of(port, 60_000).ok


def test_the_body_of_a_client_that_left_is_freed(port: int) -> None:
    for _ in range(10):
        with Unfinished(port, 64_000, 60_000):
            pass
        until(lambda: length_of(port, 60_000).ok)


async def test_bytes_that_arrive_for_a_dropped_body_are_not_counted() -> None:
    """They would never be freed."""
    budget = BodyBudget(100, timeout=60)
    with budget.body() as large, budget.body() as small:
        large.add(60)
        small.add(50)
        with pytest.raises(BodiesFull):
            large.add(60)
    with budget.body() as whole:
        whole.add(100)


def test_unpacked_bytes_count(port: int, application: Application) -> None:
    with Unfinished(port, 60_000, 60_000, "/kept"):
        until(lambda: application.kept == 1)
        packed = gzip.compress(bytes(60_000))
        url, headers = f"http://127.0.0.1:{port}/", {"Content-Encoding": "gzip"}
        assert requests.post(url, packed, headers=headers, timeout=20).status_code == 503
        application.go_on.set()


def test_a_body_has_a_timeout(application: Application) -> None:
    with served(application, body_timeout=0.3) as port, Unfinished(port, 64_000, 10) as late:
        assert late.answer() == (
            408,
            "The request's body was not complete within 0.3 seconds: send a smaller body.",
        )
        assert late.ended()
        assert length_of(port, 10).ok
