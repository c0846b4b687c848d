"""The endpoints of this runtime's routes."""

import asyncio
import html
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from mlserver.rest.openapi import get_openapi_schema
from mlserver.rest.responses import Response as JSONResponse
from mlserver.rest.utils import to_status_code
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response

from mlserver_timm.errors import ModelNotReady, TimmRuntimeError
from mlserver_timm.protocol.classify_body import read_classify
from mlserver_timm.protocol.json_body import HEADER_LENGTH, read_infer
from mlserver_timm.protocol.request import (
    BINARY_OUTPUTS,
    DEFAULT_TOP_K,
    FUNCTION,
    TOP_K,
    InferRequest,
    check_names,
)
from mlserver_timm.protocol.response import ClassificationResponse, encode, encode_rankings
from mlserver_timm.server.data_plane import DataPlane
from mlserver_timm.server.error_handlers import refusal
from mlserver_timm.server.limits import ON_LOOP_BYTES, joined
from mlserver_timm.server.middleware import count_refusal
from mlserver_timm.server.openapi import docs_page, model_document, under_prefix

CONTENT_TYPE = "content-type"
INFER_HEADERS = CONTENT_TYPE, HEADER_LENGTH

PAGE = Path(__file__).with_name("page.html")
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class Endpoints:
    """The endpoints of a REST server; each path names a model of this runtime."""

    def __init__(self, data_plane: DataPlane) -> None:
        self._data_plane = data_plane
        self._models = data_plane.timm_models

    async def infer(self, request: Request) -> Response:
        """Answer a request of the protocol, in JSON or with binary tensors."""
        answer, headers = await self._infer(request, read_infer, *INFER_HEADERS)
        head, tensors = encode(answer)
        if not tensors:
            return Response(head, media_type="application/json", headers=headers)
        headers[HEADER_LENGTH] = str(len(head))
        content = b"".join([head, *tensors])
        return Response(content, media_type="application/octet-stream", headers=headers)

    async def infer_stream(self, request: Request) -> Response:
        """Answer with a stream of one event.

        MLServer's own route sends status 200 before the model sees the request, and breaks the
        stream off if the model refuses it.
        """
        answer, _ = await self._infer(request, read_streamed, *INFER_HEADERS)
        return Response(b"data: %b\n\n" % encode(answer)[0], media_type="text/event-stream")

    async def classify(self, request: Request) -> Response:
        """Answer `[{"label": ..., "score": ...}, ...]`, best first; a list of these for several
        files."""
        answer, _ = await self._infer(request, read_classify, CONTENT_TYPE)
        return Response(encode_rankings(answer), media_type="application/json")

    async def classify_by_put(self, request: Request) -> Response:
        """Tell users of `curl -T`, which sends PUT, what to do."""
        raise HTTPException(
            405, "Use POST; with curl: -X POST -T FILE, or --data-binary @FILE.", {"Allow": "POST"}
        )

    async def model_ready(self, request: Request) -> Response:
        """Answer 200 or 503; MLServer answers 400 for a model that is not ready."""
        name, version = _model_and_version(request)
        ready = await self._data_plane.model_ready(name, version)
        return Response() if ready else refusal(ModelNotReady(name, version))

    async def ready(self, request: Request) -> Response:
        """Answer 503 if a model of this runtime is not ready, else as MLServer does."""
        ready = await self._data_plane.ready()
        for model in () if ready else self._models:
            if not await self._data_plane.model_ready(model.name, model.version):
                return refusal(ModelNotReady(model.name, model.version))
        return Response(status_code=to_status_code(ready))

    async def model_document(self, request: Request) -> Response:
        """Answer with the OpenAPI document of a model, /classify included."""
        document = model_document(*_model_and_version(request))
        return JSONResponse(under_prefix(document, _prefix(request)))

    async def server_document(self, request: Request) -> Response:
        """Answer with MLServer's OpenAPI document of the server."""
        return JSONResponse(under_prefix(get_openapi_schema(), _prefix(request)))

    async def docs(self, request: Request) -> HTMLResponse:
        """Answer with the API docs of a model, or of the server if the path names no model."""
        title, document = "MLServer API Docs", f"{quote(request.scope['path'])}/dataplane.json"
        if "model_name" in request.path_params:
            title += f" - {' '.join(filter(None, _model_and_version(request)))}"
        return docs_page(document, html.escape(title), _prefix(request))

    async def page(self, request: Request) -> HTMLResponse:
        """Answer with a page that classifies images dropped on it."""
        names = sorted({model.name for model in self._models})
        text = PAGE.read_text(encoding="utf-8")
        text = text.replace("{{models}}", html.escape(json.dumps(names)))
        text = text.replace("{{model}}", html.escape(names[0]))
        text = text.replace("{{top_k}}", str(DEFAULT_TOP_K))
        return HTMLResponse(text, headers=PAGE_HEADERS)

    async def _infer(
        self, request: Request, read: Callable[..., InferRequest], *headers: str
    ) -> tuple[ClassificationResponse, dict[str, str]]:
        """Return the model's answer and its headers.

        `read` takes the body and the values of these headers. Raises ClientDisconnect, and ends
        the work, if the client has gone; MLServer would finish it.
        """
        payload = await self._read(request, read, *headers)
        work = asyncio.ensure_future(
            self._data_plane.classify(payload, *_model_and_version(request))
        )
        disconnected = asyncio.ensure_future(request.receive())  # after a body, nothing else comes
        try:
            await asyncio.wait([work, disconnected], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientDisconnect()
            return work.result()
        finally:
            work.cancel()
            disconnected.cancel()
            del work  # an exception refers to this frame, and the task to the exception

    async def _read(
        self, request: Request, read: Callable[..., InferRequest], *headers: str
    ) -> InferRequest:
        """Return the request; count and log what is refused before the model sees it."""
        model = self._models.require(*_model_and_version(request))
        if not model.ready:
            raise ModelNotReady(*_model_and_version(request))
        values = [request.headers.get(name) for name in headers]
        try:
            body = await joined(request.stream())
            if len(body) <= ON_LOOP_BYTES:
                payload = read(body, *values)
            else:
                loop = asyncio.get_running_loop()
                readers = self._data_plane.readers
                payload = await loop.run_in_executor(readers, read, body, *values)
            return _with_query(payload, request) if request.scope["query_string"] else payload
        except TimmRuntimeError as error:
            count_refusal(model, error)
            raise


def read_streamed(body: bytes, *headers: str | None) -> InferRequest:
    """Return the request without its wish for binary tensors, which an event cannot hold."""
    request = read_infer(body, *headers)
    parameters = {**request.parameters, BINARY_OUTPUTS: None}
    return replace(request, parameters=parameters, outputs=dict.fromkeys(request.outputs, {}))


def _model_and_version(request: Request) -> tuple[str, str | None]:
    parameters = request.path_params
    return parameters["model_name"], parameters.get("model_version")


def _prefix(request: Request) -> str:
    """Return the path prefix that a proxy strips (MLServer's `root_path`), or nothing."""
    prefix: str = request.scope.get("root_path", "")
    return quote(prefix.rstrip("/"))


def _with_query(payload: InferRequest, request: Request) -> InferRequest:
    """Return the request with the parameters of the URL that the body does not have."""
    query = request.query_params
    check_names(query)
    params = {name: query[name] for name in (TOP_K, FUNCTION) if name in query}
    in_body = {name: value for name, value in payload.parameters.items() if value is not None}
    return replace(payload, parameters={**params, **in_body})
