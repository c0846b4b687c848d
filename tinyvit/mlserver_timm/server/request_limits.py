"""Bounds on the body of a request, before anything of it is parsed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from mlserver.errors import MLServerError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlserver_timm.errors import BodyTooLarge, UnsupportedEncoding
from mlserver_timm.server.body_budget import Body, BodyBudget, joined
from mlserver_timm.server.decompression import WINDOWS, in_proportion, unpack
from mlserver_timm.server.error_handlers import refusal

UNPACKING_THREADS = 2
"""As many bodies may be on their way to their full size, which is counted when it is reached."""


class RequestLimitsMiddleware:
    """Refuses bodies of more bytes than `max_body_bytes` says for a request, however they are sent,
    and unpacks gzip and deflate within the same bound; MLServer itself would unpack without one.
    Where it says None, the request is not looked at.

    All bodies together may hold `max_held_bytes`, and each has `body_timeout` seconds to arrive.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: Callable[[Scope], int | None],
        max_held_bytes: int,
        body_timeout: float,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._budget = BodyBudget(max_held_bytes, body_timeout)
        self._unpackers = ThreadPoolExecutor(UNPACKING_THREADS, thread_name_prefix="unpack")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        looked_at = scope["type"] == "http" and scope["method"] not in ("GET", "HEAD")
        most = self._max_body_bytes(scope) if looked_at else None
        if most is None:
            await self._app(scope, receive, send)
            return
        with self._budget.body() as body:
            try:
                length = Headers(scope=scope).get("content-length", "0")
                if length.isdigit() and int(length) > most:
                    raise BodyTooLarge(most)
                bounded = _bounded(body, receive, most)
                unpacked = await self._unpacked(scope, bounded, body, most)
            except MLServerError as error:
                await _refuse(error, scope, receive, send)
                return
            await self._app(scope, unpacked, send)

    async def _unpacked(self, scope: Scope, receive: Receive, held: Body, most: int) -> Receive:
        encoding = ", ".join(Headers(scope=scope).getlist("content-encoding")).strip().lower()
        if encoding in ("", "identity"):
            return receive
        if encoding not in WINDOWS:
            raise UnsupportedEncoding(encoding)
        packed = await joined(_chunks(receive))
        loop = asyncio.get_running_loop()
        limit = in_proportion(len(packed), most)
        body = await loop.run_in_executor(self._unpackers, unpack, packed, encoding, limit)
        held.add(len(body))
        scope["headers"] = list(scope["headers"])
        headers = MutableHeaders(scope=scope)
        del headers["content-encoding"]
        headers["content-length"] = str(len(body))
        return _once(body, receive)


def _bounded(body: Body, receive: Receive, most: int) -> Receive:
    async def bounded() -> Message:
        message = await body.receive(receive)
        if message["type"] == "http.request" and body.size > most:
            raise BodyTooLarge(most)
        return message

    return bounded


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


def _once(body: bytes, after: Receive) -> Receive:
    messages: Iterator[Message] = iter([{"type": "http.request", "body": body}])

    async def receive() -> Message:
        return next(messages, None) or await after()

    return receive


async def _refuse(error: MLServerError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in the application's place, and is counted as if it had: MLServer's metrics pass over
    requests that no endpoint has handled."""
    scope.update(endpoint=_refuse, router=scope["app"].router)
    await refusal(error)(scope, receive, send)
