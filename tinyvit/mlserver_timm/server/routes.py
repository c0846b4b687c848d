"""Routes of this runtime's models; other models' are MLServer's."""

from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from mlserver.handlers import DataPlane
from starlette.responses import RedirectResponse
from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import Receive, Scope, Send

from mlserver_timm.server.endpoints import Endpoints
from mlserver_timm.server.served_models import ServedModels
from mlserver_timm.server.swagger import DOCS, docs_file

MODEL = "/v2/models/{model_name}"
MODELS = (MODEL, MODEL + "/versions/{model_version}")
VERBS = ("infer", "generate", "infer_stream", "generate_stream", "classify")


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
        *route("/ready", endpoints.model_ready, "GET"),
        _PageRoute("/v2/health/ready", endpoints.ready, served),
        *route("/docs/dataplane.json", endpoints.document, "GET"),
        *route("/docs", endpoints.docs, "GET"),
        _PageRoute(DOCS, endpoints.docs, served),
        *[
            _UnknownRoute(m + "/{verb}", endpoints.unknown, served, methods=["POST"])
            for m in MODELS
        ],
    ]
    app.router.routes += [
        _PageRoute("/", endpoints.page, served),
        _PageRoute(DOCS + "/{file}", docs_file, served),
    ]
    app.router.default = _SlashRedirect(app.router)
    app.router.redirect_slashes = False


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
        if match is not Match.NONE and not self._served.model_for_request(scope):
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
            if asked["verb"] in VERBS and self._served.is_unknown_model(*model):
                return match, child
        return Match.NONE, {}


class _PageRoute(_ModelRoute):
    """Matches while any of this runtime's models is served."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        served = next(iter(self._served), None)
        return self._route.matches(scope) if served else (Match.NONE, {})


class _SlashRedirect:
    """In the place of starlette's redirection of paths with a slash too many or missing, which
    repeats the request's Host header, whatever it says: the same, without a host. Whatever else no
    route matches is not found."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._not_found = router.default

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = self._other_path(scope) if scope["type"] == "http" else None
        if not path:
            await self._not_found(scope, receive, send)
            return
        query = scope["query_string"].decode("latin-1")
        response = RedirectResponse(quote(path) + (f"?{query}" if query else ""))
        await response(scope, receive, send)

    def _other_path(self, scope: Scope) -> str | None:
        """The path with or without slashes at its end, if that is matched; two slashes at its
        beginning would make what follows them a host."""
        path: str = scope["path"]
        other = path.rstrip("/") if path.endswith("/") else f"{path}/"
        asked = {**scope, "path": other}
        matched = any(r.matches(asked)[0] is not Match.NONE for r in self._router.routes)
        return other if matched and not other.startswith("//") else None
