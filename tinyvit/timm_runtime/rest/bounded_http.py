"""uvicorn's HTTP connection, with bounds on the head of a request."""

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 2**10
"""Of a request's line and headers together; nginx takes 32 KiB of headers as shipped."""

HEAD_TIMEOUT = 20.0
"""Seconds from the opening of a connection, or a request's first byte, to its last header."""


STOPPING_GRACE = 0.2
"""Seconds that a connection without a request stays open when the server stops: one may be on its
way, and uvicorn's own closing would reset it."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Answers 431 to a head of more than `MAX_HEAD_BYTES` and 408 to one that is not complete
    within `HEAD_TIMEOUT` seconds; both close the connection.

    h11, which uvicorn takes where httptools is not installed, has its own bound on the size.
    """

    _in_head = True
    _head_bytes = 0
    _refused = False
    _stopping = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and not self._stopping:
            self._stopping = True
            self.loop.call_later(STOPPING_GRACE, self.shutdown)
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        pending = self._in_head
        super().data_received(data)
        if pending and self._in_head and not self._refused:
            self._count(len(data))

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._start_timer()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        if not self._refused:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        if not self._refused:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"The request's line and headers exceed {MAX_HEAD_BYTES} bytes.")

    def _start_timer(self) -> None:
        self._stop_timer()
        sentence = f"The request's headers were not complete within {HEAD_TIMEOUT:g} seconds."
        self._timer = self.loop.call_later(HEAD_TIMEOUT, self._refuse, 408, sentence)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _refuse(self, status: int, sentence: str) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        body = json.dumps({"error": sentence}).encode()
        head = (
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"connection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.close()
