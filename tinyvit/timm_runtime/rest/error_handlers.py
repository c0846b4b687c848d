"""One shape for the errors of this runtime's models: `{"error": one sentence}`."""

import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.exception_handlers import (
    http_exception_handler,
    request_validation_exception_handler,
)
from fastapi.exceptions import RequestValidationError
from mlserver.rest.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response as AnyResponse

from ..errors import RequestFailed
from .served_models import ServedModels

Handler = Callable[[Request, Any], Awaitable[AnyResponse]]

OBJECT_TYPES = ("dict_type", "model_type", "model_attributes_type")
NOT_AN_OBJECT = "Input should be a JSON object"
"""Where pydantic speaks of Python's types."""

NO_BINARY = (
    "Triton's binary tensors are not understood here; send JSON (with tritonclient: "
    "binary_data=False), or use gRPC."
)


def error_response(status: int, sentence: str) -> Response:
    """What a client gets in the place of an answer."""
    return Response(status_code=status, content={"error": sentence})


def add_error_handlers(app: FastAPI, served: ServedModels) -> None:
    """Other models' errors are answered as FastAPI and starlette do on their own."""

    def add(error: type[Exception], ours: Handler, others: Handler) -> None:
        async def handle(request: Request, exception: Any) -> AnyResponse:
            handler = ours if served.addressed(request.scope) else others
            return await handler(request, exception)

        app.add_exception_handler(error, handle)

    add(RequestValidationError, _invalid, request_validation_exception_handler)
    add(HTTPException, _http_error, http_exception_handler)
    add(Exception, _failed, _failed_as_starlette)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    # FastAPI's frames hold the error and the body, and the error holds them, until garbage is
    # collected.
    traceback.clear_frames(error.__traceback__)
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        binary = "inference-header-content-length" in request.headers
        return error_response(400, NO_BINARY if binary else "The body is not valid JSON.")
    if problem["loc"] == ("body",):
        return error_response(
            400, "The body must be a JSON object, with Content-Type: application/json."
        )
    where = ".".join(str(part) for part in problem["loc"][1:])[:100]
    what = NOT_AN_OBJECT if problem["type"] in OBJECT_TYPES else problem["msg"]
    return error_response(400, f"The request is not valid: {where}: {what}.")


async def _http_error(request: Request, error: HTTPException) -> Response:
    response = error_response(error.status_code, f"{str(error.detail).rstrip('.')}.")
    response.headers.update(error.headers or {})
    return response


async def _failed(request: Request, error: Exception) -> Response:
    failure = RequestFailed()
    return error_response(failure.status_code, str(failure))


async def _failed_as_starlette(request: Request, error: Exception) -> AnyResponse:
    return PlainTextResponse("Internal Server Error", status_code=500)
