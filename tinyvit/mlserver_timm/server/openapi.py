"""The OpenAPI document of this runtime's models, and the page that shows it."""

import copy
import mimetypes
from pathlib import Path
from typing import Any

from fastapi.openapi.docs import get_swagger_ui_html
from mlserver.rest.openapi import get_model_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from swagger_ui_bundle import swagger_ui_path

from mlserver_timm.protocol.request import DEFAULT_TOP_K

DOCS = "/v2/docs"
SCRIPT, STYLE, ICON = FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")

ERROR = {
    "description": "The request was refused or failed; `error` is one sentence that says why.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"error": {"type": "string"}},
                "required": ["error"],
            }
        }
    },
}
RANKING = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"label": {"type": "string"}, "score": {"type": "number"}},
        "required": ["label", "score"],
    },
}
PARAMETERS = {
    "top_k": {"type": "integer", "minimum": 1, "default": DEFAULT_TOP_K},
    "function_to_apply": {"type": "string", "enum": ["softmax", "sigmoid", "none"]},
}
QUERY = [{"name": name, "in": "query", "schema": kind} for name, kind in PARAMETERS.items()]
FILE = {"type": "string", "format": "binary"}
FORM = {"type": "object", "properties": {"file": FILE, **PARAMETERS}, "required": ["file"]}
BODIES = {
    "application/octet-stream": {"schema": FILE},
    "multipart/form-data": {"schema": FORM},
    "application/json": {
        "schema": {
            "type": "object",
            "properties": {
                "inputs": {"type": "string", "description": "Base64 or a data: URL."},
                "parameters": {"type": "object", "properties": PARAMETERS},
            },
            "required": ["inputs"],
        }
    },
}


def model_document(name: str, version: str | None) -> dict[str, Any]:
    """Return MLServer's document of a model, with /classify and the query parameters of /infer."""
    document = copy.deepcopy(get_model_schema(name, version))
    for path, operations in list(document["paths"].items()):
        if path.endswith("/infer"):
            operations["post"]["parameters"] = QUERY
            described = {"parameters": operations["parameters"], "post": _classify()}
            document["paths"][path.removesuffix("infer") + "classify"] = described
    # MLServer's document uses a type that JSON Schema does not have.
    document["components"]["schemas"]["TensorData"] = {"type": "array"}
    return document


def _classify() -> dict[str, Any]:
    return {
        "summary": "Labels and scores of an image file, best first.",
        "operationId": "classify",
        "parameters": QUERY,
        "requestBody": {"required": True, "content": BODIES},
        "responses": {
            "200": {
                "description": "For several files, a list of such lists.",
                "content": {
                    "application/json": {
                        "schema": {"oneOf": [RANKING, {"type": "array", "items": RANKING}]}
                    }
                },
            },
            "default": ERROR,
        },
    }


def under_prefix(document: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the document with the path prefix under which clients reach the server."""
    return {**document, "servers": [{"url": prefix}]} if prefix else document


def docs_page(document: str, title: str, prefix: str) -> HTMLResponse:
    """Return Swagger's page for the OpenAPI document at the URL `document`.

    Its script comes from this server. MLServer's own page loads the script from a CDN, and stays
    blank without internet access.
    """
    return get_swagger_ui_html(
        openapi_url=document,
        title=title,
        swagger_js_url=f"{prefix}{DOCS}/{SCRIPT}",
        swagger_css_url=f"{prefix}{DOCS}/{STYLE}",
        swagger_favicon_url=f"{prefix}{DOCS}/{ICON}",
    )


async def docs_file(request: Request) -> Response:
    """Return one of the files of Swagger's page.

    FileResponse is not used: it parses a Range header in quadratic time (CVE-2025-62727), and
    MLServer's requirements exclude the Starlette that fixes it.
    """
    name = request.path_params["file"]
    if name not in FILES:
        raise HTTPException(404)
    content = (Path(swagger_ui_path) / name).read_bytes()
    return Response(content, media_type=mimetypes.guess_type(name)[0])
