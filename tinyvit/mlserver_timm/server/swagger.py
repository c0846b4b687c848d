"""Swagger's page with its script from this server; MLServer's own takes it from a CDN, so that it
stays blank where there is none."""

import mimetypes
from pathlib import Path

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from swagger_ui_bundle import swagger_ui_path

DOCS = "/v2/docs"
SCRIPT, STYLE, ICON = FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")


def docs_page(document: str, title: str) -> HTMLResponse:
    """The page for the OpenAPI document at that address."""
    return get_swagger_ui_html(
        openapi_url=document,
        title=title,
        swagger_js_url=f"{DOCS}/{SCRIPT}",
        swagger_css_url=f"{DOCS}/{STYLE}",
        swagger_favicon_url=f"{DOCS}/{ICON}",
    )


async def docs_file(request: Request) -> Response:
    """What the page is made of. Starlette's FileResponse would look through a Range header in
    quadratic time (CVE-2025-62727); MLServer's bounds allow no Starlette that does not."""
    name = request.path_params["file"]
    if name not in FILES:
        raise HTTPException(404)
    content = (Path(swagger_ui_path) / name).read_bytes()
    return Response(content, media_type=mimetypes.guess_type(name)[0])
