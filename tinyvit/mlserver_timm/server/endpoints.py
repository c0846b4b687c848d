"""What this runtime's own routes do."""

import asyncio
import html
import json
import random
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from mlserver import MLModel
from mlserver.errors import MLServerError, ModelNotFound
from mlserver.handlers import DataPlane
from mlserver.rest.responses import Response as JSONResponse, ServerSentEvent
from mlserver.rest.utils import to_status_code
from mlserver.types import InferenceResponse
from mlserver.utils import extract_headers, insert_headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from mlserver_timm.errors import InvalidImage, ModelNotReady, TimmRuntimeError
from mlserver_timm.mlserver_types import from_inference_response, to_inference_request
from mlserver_timm.protocol.classify_body import STRIPPED_HINT, read_classify, was_stripped
from mlserver_timm.protocol.json_body import HEADER_LENGTH, read_infer
from mlserver_timm.protocol.request import (
    FUNCTION,
    TOP_K,
    InferRequest,
    binary_outputs,
    check_names,
)
from mlserver_timm.protocol.response import encode_binary, encode_rankings
from mlserver_timm.server.body_budget import joined
from mlserver_timm.server.error_handlers import refusal
from mlserver_timm.server.openapi import model_document
from mlserver_timm.server.served_models import ServedModels
from mlserver_timm.server.swagger import docs_page

ON_LOOP_BYTES = 64 * 2**10
"""Of bodies that are read at once: in a millisecond or two, less than a thread costs others."""

READER_THREADS = 2
"""So that one large body does not keep all others waiting."""

PAGE = Path(__file__).with_name("page.html")
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}

_IDS = random.Random()
"""Of requests that bring none. MLServer would ask the system for each, and lose the interpreter's
lock meanwhile: a wait for whoever decodes just then."""

T = TypeVar("T")


class Endpoints:
    """Of a REST server; each path names one of this runtime's models."""

    def __init__(self, data_plane: DataPlane, served: ServedModels) -> None:
        self._data_plane = data_plane
        self._served = served
        self._readers = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="body")

    async def infer(self, request: Request) -> Response:
        """The protocol's inference, in JSON and with binary tensors."""
        payload, answer = await self._infer(request)
        headers = extract_headers(answer) or {}
        response = from_inference_response(answer)
        names = tuple(output.name for output in response.outputs)
        head, tensors = encode_binary(response, binary_outputs(payload, names))
        if not tensors:
            return Response(head, media_type="application/json", headers=headers)
        headers[HEADER_LENGTH] = str(len(head))
        content = b"".join([head, *tensors])
        return Response(content, media_type="application/octet-stream", headers=headers)

    async def infer_stream(self, request: Request) -> Response:
        """One answer, as a stream of one event. MLServer's own route sends status 200 before the
        model has seen the request, and breaks off where it is refused."""
        _, answer = await self._infer(request)
        return Response(ServerSentEvent(answer).encode(), media_type="text/event-stream")

    async def classify(self, request: Request) -> Response:
        """`[{"label": ..., "score": ...}, ...]`, best first; for several files a list of these."""
        content_type = request.headers.get("content-type", "")
        with self._counted(request):
            body = await joined(request.stream())
            asked = await self._read(body, read_classify, content_type)
            hint = STRIPPED_HINT if was_stripped(body, content_type) else ""
            del body  # of JSON, the text in it is there by itself
            payload = _with_query(asked.request, request)
        try:
            answer = from_inference_response(await self._answer(payload, request))
        except MLServerError as error:
            if error.status_code == 400 and hint:
                raise InvalidImage(f"{error} {hint}") from None
            raise
        return Response(encode_rankings(answer, asked.many), media_type="application/json")

    async def classify_by_put(self, request: Request) -> Response:
        """What `curl -T` does, which is not the protocol's way."""
        raise HTTPException(
            405, "Use POST; with curl: -X POST -T FILE, or --data-binary @FILE.", {"Allow": "POST"}
        )

    async def unknown(self, request: Request) -> Response:
        """What MLServer would answer after it had read the body; not to read it is all that keeps a
        stranger from sending it what takes gigabytes."""
        raise ModelNotFound(*_addressed(request))

    async def model_ready(self, request: Request) -> Response:
        """200, or 503 where MLServer says 400, as if the question were wrong."""
        name, version = _addressed(request)
        ready = await self._data_plane.model_ready(name, version)
        return Response() if ready else refusal(ModelNotReady(name, version))

    async def ready(self, request: Request) -> Response:
        """200, or 503 where a model of this runtime is not ready; else MLServer's own answer."""
        ready = await self._data_plane.ready()
        for model in () if ready else self._served:
            if not await self._data_plane.model_ready(model.name, model.version):
                return refusal(ModelNotReady(model.name, model.version))
        return Response(status_code=to_status_code(ready))

    async def document(self, request: Request) -> Response:
        """The OpenAPI document of a model, /classify included."""
        name, version = _addressed(request)
        return JSONResponse(model_document(name, version))

    async def docs(self, request: Request) -> HTMLResponse:
        """Swagger's page of a model; without one in the path, of the server."""
        title, document = "MLServer API Docs", f"{quote(request.scope['path'])}/dataplane.json"
        if "model_name" in request.path_params:
            title += f" - {' '.join(filter(None, _addressed(request)))}"
        return docs_page(document, html.escape(title))

    async def page(self, request: Request) -> HTMLResponse:
        """A page to drop images on."""
        names = sorted({model.name for model in self._served})
        text = PAGE.read_text(encoding="utf-8")
        text = text.replace("{{models}}", html.escape(json.dumps(names)))
        text = text.replace("{{model}}", html.escape(names[0]))
        return HTMLResponse(text, headers=PAGE_HEADERS)

    async def _infer(self, request: Request) -> tuple[InferRequest, InferenceResponse]:
        with self._counted(request):
            payload = await self._read(
                await joined(request.stream()),
                read_infer,
                request.headers.get("content-type"),
                request.headers.get(HEADER_LENGTH),
            )
            payload = _with_query(payload, request)
        return payload, await self._answer(payload, request)

    async def _read(self, body: bytes, read: Callable[..., T], *arguments: Any) -> T:
        if len(body) <= ON_LOOP_BYTES:
            return read(body, *arguments)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, read, body, *arguments)

    async def _answer(self, request_: InferRequest, request: Request) -> InferenceResponse:
        payload = to_inference_request(request_)
        insert_headers(payload, dict(request.headers))
        if payload.id is None:
            payload.id = str(uuid.UUID(int=_IDS.getrandbits(128), version=4))
        return await self._data_plane.infer(payload, *_addressed(request))

    @contextmanager
    def _counted(self, request: Request) -> Iterator[None]:
        """Counts and logs what is refused before the model sees it."""
        model = self._served.find(*_addressed(request))
        if not model or not model.ready:
            raise ModelNotReady(*_addressed(request))
        try:
            yield
        except TimmRuntimeError as error:
            _count(model, error)
            raise


def _count(model: MLModel, error: TimmRuntimeError) -> None:
    pipeline = getattr(model, "pipeline", None)  # with workers, it is there
    if pipeline:
        pipeline.metrics.refused("(unread)", error)


def _addressed(request: Request) -> tuple[str, str | None]:
    parameters = request.path_params
    return parameters["model_name"], parameters.get("model_version")


def _with_query(payload: InferRequest, request: Request) -> InferRequest:
    """Return the request with what the URL asks for and the body does not."""
    query = request.query_params
    check_names(query)
    given = {name: query[name] for name in (TOP_K, FUNCTION) if name in query}
    nearer = {name: value for name, value in payload.parameters.items() if value is not None}
    return replace(payload, parameters={**given, **nearer})
