"""uvicorn's HTTP connection, with bounds on what surrounds the body of a request."""

import asyncio
import json
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from mlserver_timm.server.stalled_writes import StalledWrites

MAX_HEAD_BYTES = 64 * 2**10
"""Of a request's line and headers together; nginx takes 32 KiB of headers as shipped."""

HEAD_TIMEOUT = 20.0
"""Seconds from the opening of a connection, or a request's first byte, to its last header."""

WRITE_TIMEOUT = 60.0
"""Seconds in which a client takes nothing of its answer, after which it does not get the rest."""

PIECE = 4 * 2**10
"""Bytes that are parsed at once. What has come may be 14,000 requests of 18 bytes, of which each
takes a kilobyte and more while it waits for those before it."""

STOPPING_GRACE = 0.2
"""Seconds that a connection without a request stays open when the server stops: one may be on its
way, and uvicorn's own closing would reset it."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Answers 431 to a head of more than `MAX_HEAD_BYTES`, to as much behind the last chunk of a
    body or between two, and 408 to a head that is not complete within `HEAD_TIMEOUT` seconds; all
    close the connection.

    While a request waits for the answer to the one before it, nothing is read. A client that takes
    nothing of an answer for `WRITE_TIMEOUT` seconds is cut off.

    h11, which uvicorn takes where httptools is not installed, has its own bound on the size.
    """

    _in_head = True
    _head_bytes = 0
    """Of the line and headers so far, or of what follows a chunk's size."""
    _unfinished = 0
    """Bytes since the parser has last told of anything: it holds headers that have no end yet."""
    _refused = False
    _stopping = False
    _timer: asyncio.TimerHandle | None = None
    _unread = memoryview(b"")
    _answering: RequestResponseCycle | None = None
    """The request whose answer comes next; `cycle` is the one that came last."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self._may_read)
        self._writes = StalledWrites(transport, WRITE_TIMEOUT)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._writes.stop()
        self._unread = memoryview(b"")
        self.pipeline.clear()
        if self._answering and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        self._unread = memoryview(b"")
        self._writes.stop()
        super().handle_websocket_upgrade()

    def shutdown(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and not self._stopping:
            self._stopping = True
            self.loop.call_later(STOPPING_GRACE, self.shutdown)
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        if not (self._refused or self.transport.is_closing()):
            self._unread = memoryview(bytes(self._unread) + data if self._unread else data)
            self._read_on()

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._answering = self.pipeline[-1][0]
        super().on_response_complete()
        if not self.transport.is_closing():
            self._read_on()
            self.flow.resume_reading()

    def on_message_begin(self) -> None:
        self._head_bytes = self._unfinished = 0
        self._start_timer()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        if not self._refused:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + len(b":\r\n"))
        if not self._refused:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        if not self._refused:
            super().on_headers_complete()
            if not self.pipeline:
                self._answering = self.cycle

    def on_chunk_header(self) -> None:
        """What follows the last one are headers again, of the trailer."""
        self._head_bytes = self._unfinished = 0

    def on_body(self, body: bytes) -> None:
        self._unfinished = 0
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        if not self._refused:
            super().on_message_complete()

    def _may_read(self) -> bool:
        return not (self._unread or self.pipeline or self._refused or self.transport.is_closing())

    def _read_on(self) -> None:
        """Parses what has come, until a request has to wait for the one before it."""
        while self._unread and not self.pipeline:
            piece, self._unread = self._unread[:PIECE], self._unread[PIECE:]
            self._parse(piece)
            if self._refused or self.transport.is_closing():
                self._unread = memoryview(b"")
        if self._unread:
            self.flow.pause_reading()

    def _parse(self, piece: memoryview) -> None:
        if self._in_head and not self._timer:
            self._start_timer()
        self._unfinished += len(piece)
        super().data_received(piece)  # type: ignore[arg-type]
        self._check_size()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        self._unfinished = 0
        self._check_size()

    def _check_size(self) -> None:
        if self._head_bytes + self._unfinished > MAX_HEAD_BYTES:
            self._refuse(431, f"The request's line and headers exceed {MAX_HEAD_BYTES} bytes.")

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEAD_TIMEOUT, self._give_up_head)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _give_up_head(self) -> None:
        if self._unread or self.pipeline:  # it has come, and is not read yet
            self._start_timer()
        else:
            sentence = f"The request's headers were not complete within {HEAD_TIMEOUT:g} seconds."
            self._refuse(408, sentence)

    def _refuse(self, status: int, sentence: str) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        first = self._answering
        if first and self._in_head and not first.response_complete:
            first.keep_alive = False  # its answer is the last; none is sent in the midst of it
            self.flow.pause_reading()
            return
        if not first or self._in_head or not first.response_started:
            self._answer(status, sentence)
        self.transport.close()

    def _answer(self, status: int, sentence: str) -> None:
        body = json.dumps({"error": sentence}).encode()
        head = (
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"connection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[status] + head.encode() + body)


class _Flow(FlowControl):
    """Reads on only where `may_read` says so, whoever asks for it."""

    def __init__(self, transport: asyncio.Transport, may_read: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._may_read = may_read

    def resume_reading(self) -> None:
        if self._may_read():
            super().resume_reading()
