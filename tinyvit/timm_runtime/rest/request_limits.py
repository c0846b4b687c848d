"""Bounds on the body of a request, before anything of it is parsed."""

import zlib
from collections.abc import AsyncIterator, Iterator

from mlserver.errors import MLServerError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import BodyTooLarge, InvalidRequest
from .error_handlers import error_response
from .served_models import ServedModels


class RequestLimitsMiddleware:
    """Refuses bodies of more than `max_body_bytes`, however they are sent, and unpacks gzip within
    the same bound; MLServer itself would unpack without one."""

    def __init__(self, app: ASGIApp, served: ServedModels, max_body_bytes: int) -> None:
        self._app = app
        self._served = served
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or scope["method"] in ("GET", "HEAD")
            or not self._served.addressed(scope)
        ):
            await self._app(scope, receive, send)
            return
        counted = self._counted(receive)
        try:
            length = Headers(scope=scope).get("content-length", "0")
            if length.isdigit() and int(length) > self._max_body_bytes:
                raise BodyTooLarge(self._max_body_bytes)
            counted = await self._unpacked(scope, counted)
        except MLServerError as error:
            await _refuse(_to_framework(error), scope, receive, send)
            return
        except HTTPException as error:
            await _refuse(error, scope, receive, send)
            return
        await self._app(scope, counted, send)

    def _counted(self, receive: Receive) -> Receive:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size > self._max_body_bytes:
                    raise _to_framework(BodyTooLarge(self._max_body_bytes))
            return message

        return counted

    async def _unpacked(self, scope: Scope, receive: Receive) -> Receive:
        if "gzip" not in Headers(scope=scope).getlist("content-encoding"):
            return receive
        packed = b"".join([chunk async for chunk in _chunks(receive)])
        unpacker = zlib.decompressobj(wbits=31)
        try:
            body = unpacker.decompress(packed, self._max_body_bytes + 1)
        except zlib.error:
            raise InvalidRequest("The body is not valid gzip.") from None
        if len(body) > self._max_body_bytes:
            raise BodyTooLarge(self._max_body_bytes)
        if not unpacker.eof or unpacker.unused_data:
            raise InvalidRequest("The body is not valid gzip.")
        scope["headers"] = list(scope["headers"])
        headers = MutableHeaders(scope=scope)
        del headers["content-encoding"]
        headers["content-length"] = str(len(body))
        return _once(body, receive)


def _to_framework(error: MLServerError) -> HTTPException:
    """Of all errors while a body is read, FastAPI lets only its own keep their status."""
    return HTTPException(error.status_code, str(error))


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


async def _refuse(error: HTTPException, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in the application's place, and is counted as if it had: MLServer's metrics pass over
    requests that no endpoint has handled."""
    scope.update(endpoint=_refuse, router=scope["app"].router)
    await error_response(error.status_code, error.detail)(scope, receive, send)
