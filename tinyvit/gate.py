"""What stands between the network and MLServer's REST application: limits, and one shape for
errors."""

import asyncio
import re
import traceback
import zlib
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from mlserver.errors import MLServerError
from mlserver.rest.responses import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from classifier import SERVED

MAX_BODY = 64 * 2**20
"""Bytes of a request body, also after decompression; as settings.json has it for gRPC."""

OBJECT_TYPES = ("dict_type", "model_type", "model_attributes_type")
NOT_AN_OBJECT = "Input should be a JSON object"
"""Where pydantic speaks of Python's types."""

NO_BINARY = (
    "Triton's binary tensors are not understood here; send JSON (with tritonclient: "
    "binary_data=False), or use gRPC."
)

INFERENCE = re.compile(r"/v2/models/(?P<model>[^/]+)/(.+/)?(infer|generate|classify)")


def install(app: FastAPI) -> None:
    """Puts the gate inside MLServer's own middleware, so that its metrics count refusals too, and
    the refusal of a flood outside of it, since it costs more than all else about a refusal; but
    inside CORS, without which a browser would not tell its page of any answer."""
    kinds: list[Any] = [middleware.cls for middleware in app.user_middleware]
    if Gate in kinds:
        return
    place = kinds.index(CORSMiddleware) + 1 if CORSMiddleware in kinds else 0
    app.user_middleware.insert(place, Middleware(FloodGate))
    app.user_middleware.append(Middleware(Gate))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failure)
    app.middleware_stack = app.build_middleware_stack()


class FloodGate:
    """Refuses while the queue is full, before the body is read, so that a flood leaves time to
    serve those who were taken in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            refusal = _busy(scope["path"])
            if refusal:
                app = _error(refusal.status_code, str(refusal))
        await app(scope, receive, send)


class Gate:
    """Refuses bodies that are too large, however they are sent, and gives up the work for clients
    that have gone away, which MLServer finishes for nobody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        request = _Incoming(receive)
        try:
            length = Headers(scope=scope).get("content-length", "0")
            if length.isdigit() and int(length) > MAX_BODY:
                raise _too_large()
            await request.decompress(scope)
        except HTTPException as error:
            await _refuse(error.status_code, error.detail, scope, receive, send)
            return
        try:
            await self._app(scope, request.receive, send)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:
            if not request.gone.is_set():
                raise
        finally:
            request.close()


class _Incoming:
    """A request's body as it comes in, counted, and what is heard of the client after it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._size = 0
        self.gone = asyncio.Event()
        self.receive: Receive = self._counted

    async def _counted(self) -> Message:
        if self._watcher:
            await self.gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            if self._size > MAX_BODY:
                raise _too_large()
            if not message.get("more_body"):
                self._watcher = asyncio.create_task(self._watch())
        return message

    async def decompress(self, scope: Scope) -> None:
        """Unpacks a gzipped body within the limit; MLServer itself would unpack without one."""
        encodings = Headers(scope=scope).getlist("content-encoding")
        if "gzip" not in encodings:
            return
        packed = b"".join([chunk async for chunk in self._chunks()])
        unpacker = zlib.decompressobj(wbits=31)
        try:
            body = unpacker.decompress(packed, MAX_BODY + 1)
        except zlib.error:
            raise HTTPException(400, "The body is not valid gzip.") from None
        if len(body) > MAX_BODY:
            raise _too_large()
        if not unpacker.eof or unpacker.unused_data:
            raise HTTPException(400, "The body is not valid gzip.")
        self.receive = _once(body, self._counted)
        scope["headers"] = list(scope["headers"])
        headers = MutableHeaders(scope=scope)
        del headers["content-encoding"]
        headers["content-length"] = str(len(body))

    async def _chunks(self) -> Any:
        while True:
            message = await self.receive()
            yield message.get("body", b"")
            if not message.get("more_body"):
                return

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone.set()
        if self._task:
            self._task.cancel()

    def close(self) -> None:
        if self._watcher:
            self._watcher.cancel()


async def _refuse(status: int, sentence: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in the application's place, and is counted as if it had: MLServer's metrics pass over
    requests that no endpoint has handled."""
    scope.update(endpoint=_refuse, router=scope["app"].router)
    await _error(status, sentence)(scope, receive, send)


def _busy(path: str) -> MLServerError | None:
    """The refusal of a request to a model in this process whose queue is full."""
    match = INFERENCE.fullmatch(path)
    classifier = SERVED.get(match["model"]) if match else None
    if not classifier:
        return None
    try:
        classifier.check_room()
    except MLServerError as error:
        classifier.monitor.refused("(unread)", error)
        return error
    return None


def _once(body: bytes, after: Receive) -> Receive:
    messages: Iterator[Message] = iter([{"type": "http.request", "body": body}])

    async def receive() -> Message:
        return next(messages, None) or await after()

    return receive


def _too_large() -> HTTPException:
    return HTTPException(413, f"The body is too large; at most {MAX_BODY} bytes are accepted.")


def _error(status: int, sentence: str) -> Response:
    return Response(status_code=status, content={"error": sentence})


async def _invalid(request: Request, error: Any) -> Response:
    # FastAPI's frames hold the error and the body, and the error holds them, until garbage is
    # collected.
    traceback.clear_frames(error.__traceback__)
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        binary = "inference-header-content-length" in request.headers
        return _error(400, NO_BINARY if binary else "The body is not valid JSON.")
    if problem["loc"] == ("body",):
        return _error(400, "The body must be a JSON object, with Content-Type: application/json.")
    where = ".".join(str(part) for part in problem["loc"][1:])[:100]
    what = NOT_AN_OBJECT if problem["type"] in OBJECT_TYPES else problem["msg"]
    return _error(400, f"The request is not valid: {where}: {what}.")


async def _http_error(request: Request, error: Any) -> Response:
    response = _error(error.status_code, f"{str(error.detail).rstrip('.')}.")
    response.headers.update(error.headers or {})
    return response


async def _failure(request: Request, error: Exception) -> Response:
    return _error(500, "The server failed on this request; its log says why.")
