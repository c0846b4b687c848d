"""Beyond the protocol: one POST with an image file as its body, and the page that uses it."""

import html
import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from mlserver.handlers import DataPlane
from mlserver.rest.responses import Response
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Match, Route
from starlette.types import Scope

from ..codec import file_request, ranking
from ..errors import InvalidRequest, ModelNotReady
from .served_models import ServedModels
from .streams import stream_routes

HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
PAGE = Path(__file__).with_name("page.html")
MODEL = "/v2/models/{model_name}"
VERSION = MODEL + "/versions/{model_version}"


def add_routes(app: FastAPI, data_plane: DataPlane, served: ServedModels) -> None:
    """Adds them behind those that are there, so that another model's custom handler comes first;
    only streams go before MLServer's own."""
    endpoints = _Endpoints(data_plane, served)
    app.router.routes[:0] = stream_routes(data_plane, served)
    app.router.routes += [
        _ModelRoute(f"{path}/classify", endpoints.classify, served, methods=["POST"])
        for path in (MODEL, VERSION)
    ]
    app.router.routes.append(_PageRoute("/", endpoints.page, served))


class _ModelRoute(Route):
    """Matches where the path names one of this runtime's models; else it is as if not there."""

    def __init__(self, path: str, endpoint: Any, served: ServedModels, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self._served = served

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match is not Match.NONE and not self._served.addressed(scope):
            return Match.NONE, {}
        return match, child


class _PageRoute(_ModelRoute):
    """Matches while any of this runtime's models is served."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        served = next(iter(self._served), None)
        return Route.matches(self, scope) if served else (Match.NONE, {})


class _Endpoints:
    def __init__(self, data_plane: DataPlane, served: ServedModels) -> None:
        self._data_plane = data_plane
        self._served = served

    async def classify(self, request: Request) -> Response:
        """`[{"label": ..., "score": ...}, ...]`, best first, for an image file as the body."""
        name, version = (
            request.path_params["model_name"],
            request.path_params.get("model_version"),
        )
        model = self._served.find(name, version)
        if not model or not model.ready:
            raise ModelNotReady(name, version)
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise InvalidRequest(
                "Send the image itself as the body, not a form: "
                "curl --data-binary @picture.jpg URL."
            )
        payload = file_request(await request.body(), request.query_params.get("top_k"))
        return Response(ranking(await self._data_plane.infer(payload, name, version)))

    async def page(self, request: Request) -> HTMLResponse:
        """A page to drop images on."""
        names = sorted({model.name for model in self._served})
        text = PAGE.read_text(encoding="utf-8")
        text = text.replace("{{models}}", html.escape(json.dumps(names)))
        return HTMLResponse(text.replace("{{model}}", html.escape(names[0])), headers=HEADERS)
