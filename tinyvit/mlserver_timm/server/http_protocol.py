"""uvicorn's HTTP connection, with limits on the head of a request."""

import asyncio
import contextlib
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from mlserver_timm.errors import short

MAX_HEAD_BYTES = 64 * 2**10
"""Maximum size of a request's line and headers (nginx default: 32 KiB of headers)."""

HEAD_TIMEOUT = 20.0
"""Seconds from the opening of a connection, or a request's first byte, to its last header."""

DRAIN_TIMEOUT = 20.0
"""Seconds in which the rest of a body may arrive after the request was answered."""

PIECE = 4 * 2**10
"""Bytes that are parsed at once: up to 230 of the smallest requests, each of which takes a kilobyte
or more while it waits for the requests before it. A body of known length is parsed in one piece:
for each piece uvicorn copies all that has arrived, 60 MB for a body of 2 MB."""

FRAMING = (b"content-length", b"transfer-encoding")
"""Headers that say where a body ends."""

HOST = re.compile(rb"(\[[\da-fA-F:.]+(%[\w.~%-]+)?\]|[\w.~%!$&'()*+,;=-]*)(:\d*)?")
"""A Host header: an IPv6 address or a name, and a port (RFC 3986, section 3.2.2)."""

TARGET = re.compile(rb"/|https?://|\*$", re.IGNORECASE)
"""How the target of a request begins (RFC 9112, section 3.2). Starlette makes no URL of others; the
target of CONNECT is for proxies only."""

NOT_HTTP = "Invalid HTTP request received."


class _InvalidHead(ValueError):
    """Ends the parser at a head that is not valid."""


class HttpProtocol(HttpToolsProtocol):
    """Answers 400 to what is not HTTP; 431 to a head of more than MAX_HEAD_BYTES, and to as many
    bytes around the chunks of a body; 408 to a head that is not complete within HEAD_TIMEOUT. All
    three close the connection.

    Reads the requests of a connection one by one, and ignores an Upgrade (RFC 9110, section 7.8):
    uvicorn drops the body of a POST that offers HTTP/2, as Java's HttpClient does (uvicorn issue
    2722). tests/hook/test_http_protocol.py shows what uvicorn does otherwise.
    """

    _in_head = True
    _uncounted = 0
    """Bytes parsed since the parser last reported a head, a piece of a body or its end."""
    _body_left = 0
    """Bytes of the body that are still to come, if its length is known."""
    _refused = False
    _timer: asyncio.TimerHandle | None = None
    _unread = b""
    _started: RequestResponseCycle
    """The request that the application has; `cycle` is the last one whose head has arrived."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, lambda: not (self._unread or self.pipeline or self._refused))
        self._lingering = _LingeringTransport(transport, self._is_draining)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._unread = b""
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not (self._is_draining() or self._refused):
            self._unset_keepalive_if_required()
        self._unread += data
        self._read_on()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_draining():
            self._close_after(DRAIN_TIMEOUT)
        self._read_on()
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer could change what the application reads
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._in_head:  # see _ignore_upgrade
            return
        if not TARGET.match(self.url):
            raise _InvalidHead(NOT_HTTP)
        hosts = [value for name, value in self.headers if name == b"host" and not _is_host(value)]
        if hosts:
            host = short(hosts[0].decode("latin-1"))
            raise _InvalidHead(f"Invalid Host header '{host}': send the server's name or address.")
        self._unset_keepalive_if_required()
        self._in_head, self._uncounted = False, 0
        self._body_left = int(dict(self.headers).get(b"content-length", 0))
        self._stop_timer()
        super().on_headers_complete()
        self.cycle.transport = self._lingering  # type: ignore[assignment]
        if self.expect_100_continue:  # the client may send a body after an early answer, or not
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._uncounted = 0
        self._body_left = max(0, self._body_left - len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and self._framing():
            return  # its body comes after the upgrade
        self._in_head, self._uncounted = True, 0
        if not self._is_draining():
            super().on_message_complete()
            return
        self.cycle.more_body = False  # uvicorn leaves it after an early answer
        if self.cycle.keep_alive:
            self._close_after(self.timeout_keep_alive)
        else:
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._started = cycle
        super()._start_asgi_task(cycle, app)

    def _close_after(self, seconds: float) -> None:
        """Close the connection after this time, unless another request arrives."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def _framing(self) -> bytes:
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] in FRAMING]
        return b"".join(lines)

    def _is_draining(self) -> bool:
        """Return whether a request was answered before all of its body has arrived."""
        return bool(self.cycle) and self.cycle.response_complete and self.cycle.more_body

    def _read_on(self) -> None:
        """Parse what has arrived, until a request has to wait for the one before it."""
        unread = memoryview(self._unread)
        while unread and not (self.pipeline or self._refused or self.transport.is_closing()):
            size = self._body_left or PIECE
            piece, unread = unread[:size], unread[size:]
            self._uncounted += len(piece)
            self._parse(piece)
            if self._in_head and self._uncounted and not self._timer:
                self._start_timer()
            if self._uncounted > MAX_HEAD_BYTES:
                self._refuse(431, f"The request's head exceeds {MAX_HEAD_BYTES} bytes.")
        self._unread = b"" if self._refused or self.transport.is_closing() else bytes(unread)
        if self._unread:
            self.flow.pause_reading()

    def _parse(self, piece: memoryview) -> None:
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(piece[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self.logger.warning(NOT_HTTP)
            cause = error.__context__
            self._refuse(400, str(cause) if isinstance(cause, _InvalidHead) else NOT_HTTP)

    def _ignore_upgrade(self, rest: memoryview) -> None:
        """Replace the parser after the head of a request that offers an upgrade.

        The new parser first reads a short head with the same framing, so that it finds the body.
        """
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        framing = self._framing()
        if framing:
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % framing)
        if rest:
            self._parse(rest)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(HEAD_TIMEOUT, self._time_out)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        if self._unread or self.pipeline:  # it has arrived, and waits to be parsed
            self._start_timer()
        else:
            self._refuse(408, f"The request's head was not complete within {HEAD_TIMEOUT:g} s.")

    def _refuse(self, status: int, sentence: str) -> None:
        if self._refused:
            return
        self._refused = True
        if self._is_draining() and not self._in_head:  # it was answered already
            self.transport.close()
            return
        if self.pipeline:  # the refused request comes after others
            if self.pipeline[0][0].more_body:
                self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._started
            self._in_head = True
        answering = bool(self.cycle) and not self.cycle.response_complete
        if answering and self._in_head:
            self.cycle.keep_alive = False  # an answer in progress comes first, and is the last
            self.flow.pause_reading()
            return
        if not (answering and self.cycle.response_started):
            body = json.dumps({"error": sentence}).encode()
            head = (
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                f"connection: close\r\n\r\n"
            )
            self.transport.write(STATUS_LINE[status] + head.encode() + body)
        if status != 408 and self.transport.can_write_eof():  # see _LingeringTransport
            self.transport.write_eof()
            self._close_after(DRAIN_TIMEOUT)
        else:
            self.transport.close()


def _is_host(value: bytes) -> bool:
    """Return whether Starlette can make a URL with this Host header."""
    with contextlib.suppress(ValueError):
        urlsplit(f"//{value.decode('latin-1')}")
        return HOST.fullmatch(value) is not None
    return False


class _Flow(FlowControl):
    """Resumes reading only if `may_read` allows it (tests/hook/test_http_protocol.py)."""

    def __init__(self, transport: asyncio.Transport, may_read: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._may_read = may_read

    def resume_reading(self) -> None:
        if self._may_read():
            super().resume_reading()


class _LingeringTransport:
    """Closes a connection so that its client gets the answer before it has sent all of its body.

    If a socket is closed while data arrives, the kernel resets the connection, and the client may
    lose the answer (RFC 9112, section 9.6).
    """

    def __init__(self, transport: asyncio.Transport, is_draining: Callable[[], bool]) -> None:
        self._transport = transport
        self._is_draining = is_draining

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """End the answer; the protocol closes the connection after the body."""
        if self._is_draining() and self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()
