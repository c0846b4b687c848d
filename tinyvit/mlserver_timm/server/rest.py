"""MLServer's HTTP servers, with routes, middleware and limits for models of this runtime."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import quote

import uvicorn
from mlserver import MLModel, rest
from mlserver.handlers import ModelRepositoryHandlers
from mlserver.settings import Settings
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import Receive, Scope, Send

from mlserver_timm.errors import SettingsError
from mlserver_timm.runtime import TimmModel
from mlserver_timm.server.data_plane import DataPlane, route_path
from mlserver_timm.server.endpoints import Endpoints
from mlserver_timm.server.error_handlers import add_error_handlers
from mlserver_timm.server.http_protocol import HttpProtocol
from mlserver_timm.server.limits import (
    BODY_TIMEOUT,
    MAX_BODY_BYTES,
    MAX_HELD_BYTES,
    MAX_REPOSITORY_BYTES,
    STOP_TIMEOUT,
)
from mlserver_timm.server.logs import is_json, log_json
from mlserver_timm.server.middleware import (
    LoadSheddingMiddleware,
    RequestLimitsMiddleware,
)
from mlserver_timm.server.openapi import DOCS, docs_file

MODEL = "/v2/models/{model_name}"
MODELS = (MODEL, MODEL + "/versions/{model_version}")

Endpoint = Callable[[Request], Awaitable[Response]]

CACHE_ENABLED = (
    "Turn off MLServer's response cache (cache_enabled in settings.json) to serve a model of this "
    "runtime: the cache returns answers of other models, or of a model before its reload "
    "(SeldonIO/MLServer issue 1440), and fails on binary tensors."
)


class NoSignalServer(uvicorn.Server):
    """Leaves signals to MLServer.

    MLServer's class of this name overrides `install_signal_handlers`, which uvicorn no longer calls
    (uvicorn pull request 1600): a second Ctrl-C then drops requests.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        """Limit the heads of requests, turn off WebSockets, which MLServer has no routes for, and
        log as MLServer does, if that is JSON: uvicorn has just configured its loggers
        (tests/hook/test_http_protocol.py, tests/hook/test_logs.py)."""
        config.http, config.ws = HttpProtocol, "none"
        super().__init__(config)
        if is_json():
            log_json()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing (tests/hook/test_stop.py)."""
        yield


class RESTServer(rest.RESTServer):
    """Adds routes, middleware and error handlers that apply to models of this runtime only."""

    _data_plane: DataPlane

    def __init__(
        self,
        settings: Settings,
        data_plane: DataPlane,
        model_repository_handlers: ModelRepositoryHandlers,
    ) -> None:
        """Build MLServer's app, and add to it; MLServer has no place for middleware
        (tests/hook/test_rest.py)."""
        super().__init__(settings, data_plane, model_repository_handlers)
        self._models = data_plane.timm_models
        self._add_middleware()
        add_error_handlers(self._app, self._models)
        self._add_routes()

    async def add_custom_handlers(self, model: MLModel) -> MLModel:
        """Put another model's handlers before our pages, and refuse to load a model of this runtime
        while MLServer's response cache is on (MLServer issue 1440)."""
        if isinstance(model, TimmModel) and self._data_plane._response_cache is not None:
            raise SettingsError(CACHE_ENABLED)
        await super().add_custom_handlers(model)
        routes = self._app.router.routes
        routes.sort(key=self._pages.__contains__)
        return model

    async def start(self) -> None:
        """Serve in a task, which `stop` waits for (tests/hook/test_stop.py)."""
        self._serving = asyncio.ensure_future(super().start())
        await self._serving

    async def stop(self, sig: int | None = None) -> None:
        """Return once all accepted requests are answered; MLServer returns at once.

        After STOP_TIMEOUT only requests to other models, whose time MLServer does not limit, are
        waited for (tests/hook/test_stop.py).
        """
        await super().stop(sig)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STOP_TIMEOUT
        while not self._serving.done() and (loop.time() < deadline or self._others_wait()):
            await asyncio.sleep(0.02)

    def _others_wait(self) -> bool:
        cycles = [getattr(each, "cycle", None) for each in self._server.server_state.connections]
        return any(
            not (cycle.response_complete or cycle.more_body)
            and not self._models.model_for_request(cycle.scope)
            for cycle in cycles
            if cycle
        )

    def _add_middleware(self) -> None:
        """Add limits inside MLServer's own middleware, whose metrics then count refusals. Load
        shedding goes outside of it, because a refusal must cost little, but inside CORS, without
        which a browser hides the answer from its page."""
        middleware = self._app.user_middleware
        classes: list[Any] = [each.cls for each in middleware]
        outside = classes.index(CORSMiddleware) + 1 if CORSMiddleware in classes else 0
        middleware.insert(outside, Middleware(LoadSheddingMiddleware, models=self._models))
        limits = Middleware(
            RequestLimitsMiddleware,
            max_body_bytes=self._max_body_bytes,
            max_held_bytes=MAX_HELD_BYTES,
            body_timeout=BODY_TIMEOUT,
        )
        middleware.append(limits)

    def _add_routes(self) -> None:
        """Add the models' routes before MLServer's own, which requests would otherwise pass first.

        Starlette tries the routes in order, and MLServer's metrics do it a second time.
        """
        endpoints, models = Endpoints(self._data_plane), self._models

        def routes(path: str, endpoint: Endpoint, method: str = "POST") -> list[BaseRoute]:
            """Return routes for models of this runtime; inference with unknown models matches, too:
            MLServer would parse the body, without a limit, before it answers 404."""
            is_get = method == "GET"
            condition = models.model_for_request if is_get else models.is_timm_or_unknown_model
            return [_ConditionalRoute(m + path, endpoint, condition, method) for m in MODELS]

        def page(path: str, endpoint: Endpoint) -> BaseRoute:
            """Return a route that exists while any model of this runtime is served."""
            return _ConditionalRoute(path, endpoint, lambda _: next(iter(models), None))

        router = self._app.router
        router.routes[:0] = [
            *routes("/infer", endpoints.infer),
            *routes("/classify", endpoints.classify),
            *routes("/classify", endpoints.classify_by_put, "PUT"),
            *routes("/generate", endpoints.infer),
            *routes("/infer_stream", endpoints.infer_stream),
            *routes("/generate_stream", endpoints.infer_stream),
            *routes("/ready", endpoints.model_ready, "GET"),
            page("/v2/health/ready", endpoints.ready),
            *routes("/docs/dataplane.json", endpoints.model_document, "GET"),
            *routes("/docs", endpoints.docs, "GET"),
            page(DOCS + "/dataplane.json", endpoints.server_document),
            page(DOCS, endpoints.docs),
        ]
        self._pages = [page("/", endpoints.page), page(DOCS + "/{file}", docs_file)]
        router.routes += self._pages
        router.default = _SlashRedirect(router)
        router.redirect_slashes = False

    def _max_body_bytes(self, scope: Scope) -> int | None:
        if self._models.model_for_request(scope):
            return MAX_BODY_BYTES
        return MAX_REPOSITORY_BYTES if route_path(scope).startswith("/v2/repository/") else None


class _ConditionalRoute(BaseRoute):
    """Matches only requests for which `condition` returns a true value.

    It holds a Route instead of being one: OpenTelemetry looks only at the path of a Route, and
    would give other models' requests the names of ours.
    """

    def __init__(
        self,
        path: str,
        endpoint: Endpoint,
        condition: Callable[[Scope], object],
        method: str = "GET",
    ) -> None:
        self.path, self.endpoint = path, endpoint  # MLServer looks at both
        self._route = Route(path, endpoint, methods=[method])
        self._condition = condition

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = self._route.matches(scope)
        if match is not Match.NONE and not self._condition(scope):
            return Match.NONE, {}
        return match, child

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._route.handle(scope, receive, send)


class _SlashRedirect:
    """Redirects a path with a missing or additional slash at its end.

    Starlette's own redirection repeats the request's Host header, whatever it contains. This one
    contains the path only. Other paths that no route matches are not found.
    """

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
        """Return the path with or without slashes at its end, if a route matches it; two slashes at
        its start would turn what follows into a host."""
        path: str = scope["path"]
        other = path.rstrip("/") if path.endswith("/") else f"{path}/"
        other_scope = {**scope, "path": other, "state": {}}
        matched = any(r.matches(other_scope)[0] is not Match.NONE for r in self._router.routes)
        return other if matched and not other.startswith("//") else None
