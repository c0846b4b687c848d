"""One shape for the errors of this runtime's models: `{"error": one sentence}`."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.exception_handlers import http_exception_handler
from mlserver.errors import MLServerError
from mlserver.rest.errors import handle_mlserver_error
from mlserver.rest.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response as AnyResponse

from mlserver_timm.errors import RequestFailed
from mlserver_timm.server.data_plane import TimmModels

Handler = Callable[[Request, Any], Awaitable[AnyResponse]]


def error_response(status: int, sentence: str, retry_after: int | None = None) -> Response:
    """Return a response with an error in JSON; `retry_after` is in seconds."""
    headers = None if retry_after is None else {"Retry-After": str(retry_after)}
    return Response(status_code=status, content={"error": sentence}, headers=headers)


def refusal(error: MLServerError) -> Response:
    """Return the response to a request that a model or a limit refuses."""
    response = error_response(error.status_code, str(error), getattr(error, "retry_after", None))
    if error.status_code == 408:
        response.headers["Connection"] = "close"  # else the server waits for the rest of the body
    return response


def add_error_handlers(app: FastAPI, models: TimmModels) -> None:
    """Add error handlers that leave other models' errors to FastAPI's and MLServer's own."""

    def add(error: type[Exception], ours: Handler, others: Handler) -> None:
        async def handle(request: Request, exception: Any) -> AnyResponse:
            handler = ours if models.model_for_request(request.scope) else others
            return await handler(request, exception)

        app.add_exception_handler(error, handle)

    add(MLServerError, _refused, handle_mlserver_error)
    add(HTTPException, _http_error, http_exception_handler)
    add(Exception, _failed, _failed_as_starlette)


async def _refused(request: Request, error: MLServerError) -> Response:
    return refusal(error)


async def _http_error(request: Request, error: HTTPException) -> Response:
    response = error_response(error.status_code, f"{str(error.detail).rstrip('.')}.")
    response.headers.update(error.headers or {})
    return response


async def _failed(request: Request, error: Exception) -> Response:
    return refusal(RequestFailed())


async def _failed_as_starlette(request: Request, error: Exception) -> AnyResponse:
    return PlainTextResponse("Internal Server Error", status_code=500)
