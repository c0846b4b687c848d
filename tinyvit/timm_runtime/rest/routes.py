"""Routes of this runtime's models; other models' are MLServer's."""

from typing import Any

from fastapi import FastAPI
from mlserver.handlers import DataPlane
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from .endpoints import Endpoints
from .served_models import ServedModels
from .swagger import DOCS, docs_file

MODEL = "/v2/models/{model_name}"
MODELS = (MODEL, MODEL + "/versions/{model_version}")
VERBS = ("infer", "generate", "infer_stream", "generate_stream", "classify")
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]


def add_routes(app: FastAPI, data_plane: DataPlane, served: ServedModels) -> None:
    """Adds those of this runtime's models before MLServer's own: an answer looks through all routes
    before its own twice, MLServer's metrics being the second time. What is for no one model comes
    behind all others, so that another model's custom handler comes first."""
    endpoints = Endpoints(data_plane, served)

    def route(path: str, endpoint: Any, method: str = "POST") -> list[BaseRoute]:
        return [_ModelRoute(m + path, endpoint, served, methods=[method]) for m in MODELS]

    app.router.routes[:0] = [
        *route("/infer", endpoints.infer),
        *route("/classify", endpoints.classify),
        *route("/classify", endpoints.classify_by_put, "PUT"),
        *route("/generate", endpoints.infer),
        *route("/infer_stream", endpoints.infer_stream),
        *route("/generate_stream", endpoints.infer_stream),
        *route("/docs/dataplane.json", endpoints.document, "GET"),
        *route("/docs", endpoints.docs, "GET"),
        _PageRoute(DOCS, endpoints.docs, served),
        *[
            _UnknownRoute(m + "/{verb}", endpoints.unknown, served, methods=["POST"])
            for m in MODELS
        ],
    ]
    app.router.routes += [
        _SlashRoute(MODEL + "/{path:path}", endpoints.without_slash, served, methods=METHODS),
        _PageRoute("/", endpoints.page, served),
        _PageRoute(DOCS + "/{file}", docs_file, served),
    ]


class _ModelRoute(BaseRoute):
    """Matches where the path names one of this runtime's models; else it is as if not there.

    It holds a Route and is none: of those OpenTelemetry reads the path alone, and would call other
    models' requests by ours.
    """

    def __init__(self, path: str, endpoint: Any, served: ServedModels, **options: Any) -> None:
        self.path = path
        self._route = Route(path, endpoint, **options)
        self._served = served

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = self._route.matches(scope)
        if match is not Match.NONE and not self._served.addressed(scope):
            return Match.NONE, {}
        return match, child

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._route.handle(scope, receive, send)


class _UnknownRoute(_ModelRoute):
    """Matches inference with a model that there is not, or a version of ours."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = self._route.matches(scope)
        if match is Match.FULL:
            asked = child["path_params"]
            model = asked["model_name"], asked.get("model_version")
            if asked["verb"] in VERBS and self._served.is_nobodys(*model):
                return match, child
        return Match.NONE, {}


class _SlashRoute(_ModelRoute):
    """Matches paths of this runtime's models that end with a slash."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if scope["path"].endswith("/") else (Match.NONE, {})


class _PageRoute(_ModelRoute):
    """Matches while any of this runtime's models is served."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        served = next(iter(self._served), None)
        return self._route.matches(scope) if served else (Match.NONE, {})
