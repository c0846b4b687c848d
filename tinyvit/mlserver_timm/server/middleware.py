"""Middleware for requests to models of this runtime; all other requests pass through."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from mlserver import MLModel
from mlserver.errors import MLServerError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlserver_timm.errors import BodyTooLarge, UnsupportedEncoding, short
from mlserver_timm.metrics import note_correlation
from mlserver_timm.runtime import TimmModel
from mlserver_timm.server.data_plane import STATE, TimmModels
from mlserver_timm.server.error_handlers import refusal
from mlserver_timm.server.limits import (
    WINDOWS,
    Body,
    BodyBudget,
    decompress,
    joined,
    max_decompressed,
)

DECOMPRESSION_THREADS = 2
"""Maximum number of bodies that are decompressed at the same time; the budget counts a decompressed
body only afterwards."""


def count_refusal(model: MLModel | None, error: MLServerError) -> None:
    """Count and log a request that is refused before a model of this runtime sees it."""
    if isinstance(model, TimmModel) and hasattr(model, "pipeline"):  # else it is still loading
        model.pipeline.metrics.refused(getattr(error, "request_id", None) or "(unread)", error)


class LoadSheddingMiddleware:
    """Answer 503 while a model's queue is full, before the body is read.

    A flood then leaves time for the requests that were accepted.
    """

    def __init__(self, app: ASGIApp, models: TimmModels) -> None:
        self._app = app
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            note_correlation(Headers(scope=scope))
            model = self._models.model_for_request(scope)
            pipeline = getattr(model, "pipeline", None)
            try:
                if pipeline:
                    pipeline.check_room()
            except MLServerError as error:
                count_refusal(model, error)
                app = refusal(error)
        await app(scope, receive, send)


class RequestLimitsMiddleware:
    """Refuse bodies over a limit, and decompress gzip and deflate within it.

    `max_body_bytes` returns the limit in bytes for a request, or None to let it pass. All bodies
    together may hold `max_held_bytes`, and each has `body_timeout` seconds to arrive. MLServer
    itself decompresses without a limit.
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
        self._threads = ThreadPoolExecutor(DECOMPRESSION_THREADS, thread_name_prefix="decompress")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_body = scope["type"] == "http" and scope["method"] not in ("GET", "HEAD")
        limit = self._max_body_bytes(scope) if has_body else None
        if limit is None:
            await self._app(scope, receive, send)
            return
        with self._budget.body() as body, contextlib.suppress(ClientDisconnect):
            try:
                length = Headers(scope=scope).get("content-length", "0")
                if length.isdigit() and int(length) > limit:
                    raise BodyTooLarge(limit)
                bounded = functools.partial(body.receive, receive, limit)
                decompressed = await self._decompressed(scope, bounded, body, limit)
            except MLServerError as error:
                await _refuse(error, scope, receive, send)
                return
            await self._app(scope, decompressed, send)

    async def _decompressed(
        self, scope: Scope, receive: Receive, held: Body, limit: int
    ) -> Receive:
        encoding = ", ".join(Headers(scope=scope).getlist("content-encoding")).strip().lower()
        if encoding in ("", "identity"):
            return receive
        if encoding not in WINDOWS:
            raise UnsupportedEncoding(short(encoding))
        compressed = await joined(Request(scope, receive).stream())
        loop = asyncio.get_running_loop()
        limit = max_decompressed(len(compressed), limit)
        body = await loop.run_in_executor(self._threads, decompress, compressed, encoding, limit)
        held.add(len(body))
        scope["headers"] = list(scope["headers"])
        headers = MutableHeaders(scope=scope)
        del headers["content-encoding"]
        headers["content-length"] = str(len(body))
        return _once(body, receive)


def _once(body: bytes, after: Receive) -> Receive:
    messages: Iterator[Message] = iter([{"type": "http.request", "body": body}])

    async def receive() -> Message:
        return next(messages, None) or await after()

    return receive


async def _refuse(error: MLServerError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer in the application's place, with an endpoint: MLServer's metrics ignore requests
    without one."""
    count_refusal(scope.get("state", {}).get(STATE), error)
    scope.update(endpoint=_refuse, router=scope["app"].router)
    await refusal(error)(scope, receive, send)
