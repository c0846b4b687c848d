"""The head of a request is limited in size and time, requests of a connection are read one by one,
and an upgrade to another protocol is ignored.

A test with `uvicorn` in its name shows the behaviour of uvicorn's own class that is overridden.
"""

import asyncio
import json
import re
import urllib.request
from collections.abc import Sequence
from typing import Any

import pytest
import uvicorn
from hypothesis import given, strategies as st
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from mlserver_timm.server import http_protocol
from mlserver_timm.server.http_protocol import MAX_HEAD_BYTES, PIECE, HttpProtocol
from mlserver_timm.server.rest import NoSignalServer

Request = tuple[str, str, bytes]
"""Method, path and body."""


EARLY = "/early"
"""The path of requests that are answered before their body is read."""


class Transport(asyncio.Transport):
    """A transport that records what is written and whether reading is paused."""

    def __init__(self, can_end: bool = False) -> None:
        super().__init__()
        self.can_end = can_end
        self.written = b""
        self.ended = False
        self.closing = False
        self.reading = True

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def can_write_eof(self) -> bool:
        return self.can_end

    def write_eof(self) -> None:
        self.ended = True


class Connection:
    """A connection to an application that records each request and answers with its path."""

    def __init__(
        self, protocol: type[HttpToolsProtocol] = HttpProtocol, can_end: bool = False
    ) -> None:
        self.requests: list[Request] = []
        self.answers = asyncio.Event()
        self.answers.set()
        config = uvicorn.Config(self._app, interface="asgi3", log_config=None)
        NoSignalServer(config)  # sets the protocol and its limits
        self.protocol = protocol(config, ServerState(), {})
        self.transport = Transport(can_end)
        self.protocol.connection_made(self.transport)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", scope["path"] != EARLY
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.requests.append((scope["method"], scope["path"], body))
        await self.answers.wait()
        path = scope["path"].encode()
        length = (b"content-length", b"%d" % len(path))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": path})

    async def send(self, *pieces: bytes) -> None:
        """Deliver pieces as the transport takes them, and let the application run."""
        for piece in pieces:
            while not (self.transport.reading or self.transport.closing):
                await asyncio.sleep(0)
            self.protocol.data_received(piece)
            await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", self.transport.written)]


pytestmark = pytest.mark.timeout(20)

UVLOOP = ("asyncio", {"use_uvloop": True})

# --- Upgrade -----------------------------------------------------------------------------------

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
"""The headers of Java's HttpClient and of `curl --http2`."""


def encode(request: Request, upgrade: bytes, chunk: int) -> bytes:
    """Return a request with an offer; in chunks of that size unless it is 0."""
    method, path, body = request
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n".encode() + upgrade
    if method == "GET":
        return head + b"\r\n"
    if not chunk:
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    pieces = [body[start : start + chunk] for start in range(0, len(body), chunk)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Request], list[bytes]]:
    """Return requests of one connection, and the packets they come in."""
    requests, data = [], b""
    for number in range(draw(st.integers(1, 4))):
        method = draw(st.sampled_from(["GET", "POST"]))
        body = b"" if method == "GET" else draw(st.binary(max_size=40))
        requests.append((method, f"/{number}", body))
        upgrade = draw(
            st.sampled_from([H2C, b"", b"Connection: upgrade\r\nUpgrade: websocket\r\n"])
        )
        data += encode(requests[-1], upgrade, draw(st.sampled_from([0, 1, 7])))
    cuts = sorted(draw(st.sets(st.integers(0, len(data)), max_size=6)))
    packets = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return requests, [packet for packet in packets if packet]


@pytest.mark.timeout(300)
@given(conversations())
async def test_an_upgrade_is_ignored(conversation: tuple[list[Request], list[bytes]]) -> None:
    """The connection stays open, in any packets, chunked or not."""
    requests, packets = conversation

    connection = Connection()
    await asyncio.wait_for(connection.send(*packets), 20)
    assert connection.requests == requests
    assert connection.statuses == [200] * len(requests)
    assert not connection.transport.closing


async def test_uvicorn_drops_the_body_after_an_upgrade() -> None:
    connection = Connection(HttpToolsProtocol)
    await connection.send(encode(("POST", "/", b"body"), H2C, 0))
    assert connection.requests == [("POST", "/", b"")]


# --- Size --------------------------------------------------------------------------------------

CHUNKED = encode(("POST", "/", b"x"), b"", 1)[: -len(b"0\r\n\r\n")]
ENDLESS = {
    "address": (b"GET /", b"a" * 1000),
    "headers": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n" * 200),
    "one header": (b"GET / HTTP/1.1\r\nX: ", b"y" * 1000),
    "empty lines": (b"", b"\r\n" * 500),
    "trailers": (CHUNKED + b"0\r\n", b"X: y\r\n" * 200),
    "one trailer": (CHUNKED + b"0\r\nX: ", b"y" * 1000),
    "a trailer's name": (CHUNKED + b"0\r\n", b"y" * 1000),
    "a chunk's extension": (CHUNKED + b"2;x=", b"y" * 1000),
}


async def endless(protocol: type[HttpToolsProtocol], kind: str, limit: int) -> tuple[int, bytes]:
    """Return how many bytes of endless data a connection accepts, up to `limit`, and its answer."""
    start, piece = ENDLESS[kind]
    connection = Connection(protocol)
    await connection.send(start)
    taken = 0
    while not connection.transport.closing and taken < limit:
        await connection.send(piece)
        taken += len(piece)
    return taken, connection.transport.written


@pytest.mark.parametrize("kind", ENDLESS)
async def test_an_endless_head_is_refused(kind: str) -> None:
    taken, answer = await endless(HttpProtocol, kind, 10 * MAX_HEAD_BYTES)
    assert taken <= MAX_HEAD_BYTES + PIECE
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body) == {"error": f"The request's head exceeds {MAX_HEAD_BYTES} bytes."}


async def test_uvicorn_accepts_an_endless_head() -> None:
    taken, answer = await endless(HttpToolsProtocol, "headers", 5 * MAX_HEAD_BYTES)
    assert taken >= 5 * MAX_HEAD_BYTES and not answer


@pytest.mark.parametrize("size", [100, 5000, 10**6])
async def test_large_heads_and_bodies_are_read_in_pieces_of_any_size(size: int) -> None:
    """60 KB of a head, a chunk's extension and a trailer each, and a megabyte of a body."""
    large = b"y" * 60_000
    body = bytes(10**6)
    data = b"POST / HTTP/1.1\r\nX: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % large
    data += b"%x;x=%b\r\n%b\r\n0\r\nX: %b\r\n\r\n" % (len(body), large, body, large)

    connection = Connection()
    await connection.send(*[data[i : i + size] for i in range(0, len(data), size)])
    assert connection.requests == [("POST", "/", body)]
    assert connection.statuses == [200]


# --- Requests behind others ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "is_bounded"), [(HttpProtocol, True), (HttpToolsProtocol, False)]
)
async def test_requests_wait_unread(protocol: type[HttpToolsProtocol], is_bounded: bool) -> None:
    """128 KiB of requests wait behind one that is not answered yet, even if the application reads
    on; uvicorn makes a kilobyte of objects for each."""
    small = b"GET / HTTP/1.1\r\n\r\n"
    count = 2**17 // len(small)

    connection = Connection(protocol)
    connection.answers.clear()
    await connection.send(small * count)
    connection.protocol.flow.resume_reading()
    waiting = len(connection.protocol.pipeline)
    assert (waiting <= PIECE / len(small)) == is_bounded
    assert not connection.transport.reading or not is_bounded


async def test_requests_behind_others_are_answered_in_order() -> None:
    requests = [("POST", f"/{number}", b"x" * number) for number in range(1000)]

    connection = Connection()
    connection.answers.clear()
    await connection.send(b"".join(encode(request, b"", 0) for request in requests))
    connection.answers.set()
    while len(connection.statuses) < len(requests):
        await asyncio.sleep(0)
    assert connection.requests == requests
    assert connection.transport.reading


async def test_an_answer_in_progress_is_not_broken_by_a_refusal() -> None:
    connection = Connection()
    connection.answers.clear()
    await connection.send(b"GET /first HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"y" * 10**5)
    assert not connection.transport.written and not connection.transport.closing
    connection.answers.set()
    await connection.send()
    assert connection.statuses == [200]
    assert connection.transport.closing


@pytest.mark.parametrize(
    "garbage",
    [b"garbage\r\n\r\n", b"POST /second HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"],
    ids=["head", "body"],
)
@pytest.mark.parametrize("paths", [["/first"], ["/first", "/second", "/third"]])
async def test_garbage_behind_requests_does_not_cost_their_answers(
    paths: list[str], garbage: bytes
) -> None:
    connection = Connection()
    good = b"".join(encode(("POST", path, b"x"), b"", 0) for path in paths)
    connection.answers.clear()
    await connection.send(good + garbage)
    connection.answers.set()
    await connection.send()
    assert connection.statuses == [200] * len(paths)
    assert connection.transport.written.endswith(paths[-1].encode())
    assert connection.transport.closing


# --- Not HTTP ------------------------------------------------------------------------------------


async def answer_to(data: bytes) -> tuple[int, str]:
    """Return status and error of a request that must not reach the application."""
    connection = Connection()
    await connection.send(data)
    assert not connection.requests and connection.transport.closing
    body = connection.transport.written.partition(b"\r\n\r\n")[2]
    return connection.statuses[0], json.loads(body)["error"]


async def test_garbage_is_refused() -> None:
    assert await answer_to(b"garbage\r\n\r\n") == (400, "Invalid HTTP request received.")


@pytest.mark.parametrize("target", ["*[", "*%5B", "x", "a:1", "ftp://x/"])
async def test_a_target_of_no_url_is_refused(target: str) -> None:
    status, _ = await answer_to(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert status == 400


@pytest.mark.parametrize("packets", [1, 2])
async def test_trailers_are_no_headers(packets: int) -> None:
    """Whether they arrive with the request or after its head."""
    data = encode(("POST", "/", b"x"), b"", 1).replace(b"0\r\n\r\n", b"0\r\nHost: [\r\n\r\n")
    middle = data.index(b"\r\n\r\n") + 4

    connection = Connection()
    await connection.send(*([data] if packets == 1 else [data[:middle], data[middle:]]))
    assert connection.statuses == [200]
    hosts = [value for name, value in connection.protocol.scope["headers"] if name == b"host"]
    assert hosts == [b"x"]


async def test_a_request_behind_a_refused_head_is_not_answered() -> None:
    connection = Connection(can_end=True)
    await connection.send(
        b"GET / HTTP/1.1\r\nHost: [\r\n\r\nGET /early HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    assert connection.statuses == [400]
    assert connection.requests == []


def posted_to(host: str) -> bytes:
    return f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1\r\n\r\nx".encode("latin-1")


@pytest.mark.parametrize("host", ["[", "]", "[::1", "[x]:1", "x#", "a/b", "a?b", "a@b", "a b", "é"])
async def test_a_malformed_host_is_refused(host: str) -> None:
    """Starlette raises ValueError for some of them, and looks for the query in others."""
    status, sentence = await answer_to(posted_to(host))
    assert status == 400
    assert sentence.startswith("Invalid Host header '")


@pytest.mark.parametrize("host", ["", "x", "cats.example:80", "[::1]:8080", "127.0.0.1:1", "a_b-c"])
async def test_other_hosts_are_accepted(host: str) -> None:
    connection = Connection()
    await connection.send(posted_to(host))
    assert connection.requests == [("POST", "/", b"x")]


# --- Time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [b"GET / HT"],
        [b"GET / HTTP/1.1\r\nHost: x\r\n"],
        [b"GET / HTTP/1.1\r\n\r\n", b"\r\n"],
        [b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n"],
    ],
)
@pytest.mark.parametrize("anyio_backend", ["asyncio", UVLOOP], ids=["asyncio", "uvloop"])
async def test_a_head_must_be_complete_in_time(
    monkeypatch: pytest.MonkeyPatch, sent: Sequence[bytes]
) -> None:
    """The time counts from the connection or from the first byte after an answer."""
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT", 0.1)
    connection = Connection()
    await connection.send(*sent)
    while not connection.transport.closing:
        await asyncio.sleep(0.01)
    assert connection.statuses == [200, 408][not connection.requests :]


async def test_a_body_and_an_idle_connection_have_more_time() -> None:
    connection = Connection()
    assert connection.protocol._timer
    await connection.send(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n")
    assert not connection.protocol._timer
    await connection.send(b"x")
    assert connection.statuses == [200]
    assert not connection.protocol._timer


async def test_the_rest_of_a_body_after_the_answer_has_limited_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_protocol, "DRAIN_TIMEOUT", 0.1)
    connection = Connection()
    head = f"POST {EARLY} HTTP/1.1\r\nContent-Length: 1000\r\n\r\n".encode()
    await connection.send(head, b"x")
    assert connection.statuses == [200] and not connection.transport.closing
    while not connection.transport.closing:
        await connection.send(b"x")
        await asyncio.sleep(0.01)


async def test_a_body_that_is_complete_after_the_answer_leaves_the_connection_open() -> None:
    connection = Connection()
    await connection.send(encode(("POST", EARLY, b"xx"), b"", 0)[:-1], b"x")
    await connection.send(encode(("POST", "/next", b"y"), b"", 0))
    assert connection.statuses == [200, 200]
    assert not connection.transport.closing


@pytest.mark.parametrize("ends_in_time", [True, False])
async def test_an_early_answer_is_not_lost_with_its_connection(
    monkeypatch: pytest.MonkeyPatch, ends_in_time: bool
) -> None:
    """The kernel resets a connection that is closed while data arrives. So the answer ends first,
    and the connection closes after the body or DRAIN_TIMEOUT."""
    monkeypatch.setattr(http_protocol, "DRAIN_TIMEOUT", 20 if ends_in_time else 0.1)
    connection = Connection(can_end=True)
    head = f"POST {EARLY} HTTP/1.1\r\nConnection: close\r\nContent-Length: 10\r\n\r\n"
    await connection.send(head.encode(), b"xxxxx")
    assert connection.statuses == [200]
    assert connection.transport.ended and not connection.transport.closing
    if ends_in_time:
        await connection.send(b"xxxxx")
    while not connection.transport.closing:
        await asyncio.sleep(0.01)
    assert connection.statuses == [200]


@pytest.mark.parametrize("anyio_backend", [UVLOOP], ids=["uvloop"])
@pytest.mark.parametrize("size", [2**20, 2**24])
async def test_a_client_that_sends_all_of_its_body_first_gets_an_early_answer(size: int) -> None:
    """As Python's urllib does, which also asks for the connection to be closed."""

    def ask(port: int) -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{EARLY}", bytes(size))
        with urllib.request.urlopen(request, timeout=20) as response:
            return str(response.read().decode())

    loop = asyncio.get_running_loop()
    make = Connection().protocol.__class__
    config = Connection().protocol.config
    server = await loop.create_server(lambda: make(config, ServerState(), {}), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for _ in range(5):
        assert await asyncio.to_thread(ask, port) == EARLY
    server.close()


async def test_an_answer_before_100_continue_closes_the_connection() -> None:
    """The client may send the body or not (RFC 9110, section 10.1.1)."""
    connection = Connection(can_end=True)
    await connection.send(
        f"POST {EARLY} HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n".encode()
    )
    assert b"connection: close" in connection.transport.written
    assert connection.transport.ended


async def test_a_refusal_ends_before_the_connection_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the same reason."""
    monkeypatch.setattr(http_protocol, "DRAIN_TIMEOUT", 0.1)
    connection = Connection(can_end=True)
    large = b"GET / HTTP/1.1\r\nX: " + b"y" * (MAX_HEAD_BYTES - 20)
    await connection.send(large, b"\r\n:garbage\r\n\r\n" + b"y" * PIECE)  # and too large
    assert connection.statuses == [400]
    assert connection.transport.ended and not connection.transport.closing
    while not connection.transport.closing:
        await connection.send(b"more")
        await asyncio.sleep(0.01)
    assert connection.statuses == [400]


async def test_a_connection_whose_early_answer_is_over_is_an_idle_one() -> None:
    """Its body is complete, so the time to send it no longer counts."""
    connection = Connection()
    connection.protocol.timeout_keep_alive = 0.1
    await connection.send(encode(("POST", EARLY, b"xx"), b"", 0)[:-1], b"x")
    assert connection.statuses == [200]
    while not connection.transport.closing:
        await asyncio.sleep(0.01)
