"""What this runtime adds to MLServer's REST server, for requests to its own models only."""

import functools
from typing import Any

from fastapi import FastAPI
from mlserver.handlers import DataPlane
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Scope

from mlserver_timm.errors import SettingsError
from mlserver_timm.server.disconnects import DisconnectMiddleware
from mlserver_timm.server.error_handlers import add_error_handlers
from mlserver_timm.server.load_shedding import LoadSheddingMiddleware
from mlserver_timm.server.request_limits import RequestLimitsMiddleware
from mlserver_timm.server.routes import add_routes
from mlserver_timm.server.served_models import ServedModels

MAX_BODY_BYTES = 64 * 2**20
"""Of a request's body, also after decompression. settings.json has 48 MiB for gRPC, which holds a
message three times as it hands it over."""

MAX_HELD_BYTES = 128 * 2**20
"""Of all bodies together: two of the largest, and 2,000 photographs of 64 KB."""

MAX_REPOSITORY_BYTES = 64 * 2**10
"""Of a body for MLServer's repository API, which has a few words to say."""

BODY_TIMEOUT = 120.0
"""Seconds that a body may take to arrive: a photograph of 5 MB at 350 kbit/s."""

CACHE_ENABLED = (
    "MLServer's cache (cache_enabled in settings.json) must be off where a model of this runtime "
    "is served: it answers with what another model, or the one before a reload, has said "
    "(SeldonIO/MLServer issue 1440), and it takes no binary tensors."
)


def install(app: FastAPI, data_plane: DataPlane) -> None:
    """Adds middleware, routes and error handlers to a REST application; a second call does nothing.

    Raises SettingsError where MLServer's response cache is on.
    Limits and cancellation lie inside MLServer's own middleware, so that its metrics count what is
    refused. Load shedding lies outside of it, since it costs more than all else about a refusal,
    but inside CORS, without which a browser would not tell its page of any answer.
    """
    if data_plane._response_cache is not None:
        raise SettingsError(CACHE_ENABLED)
    if getattr(app.state, "mlserver_timm", False):
        return
    app.state.mlserver_timm = True
    served = ServedModels(data_plane._model_registry)
    kinds: list[Any] = [middleware.cls for middleware in app.user_middleware]
    outside = kinds.index(CORSMiddleware) + 1 if CORSMiddleware in kinds else 0
    app.user_middleware.insert(outside, Middleware(LoadSheddingMiddleware, served=served))
    app.user_middleware += [
        Middleware(DisconnectMiddleware, served=served),
        Middleware(
            RequestLimitsMiddleware,
            max_body_bytes=functools.partial(_max_body_bytes, served),
            max_held_bytes=MAX_HELD_BYTES,
            body_timeout=BODY_TIMEOUT,
        ),
    ]
    add_error_handlers(app, served)
    add_routes(app, data_plane, served)
    app.middleware_stack = app.build_middleware_stack()


def _max_body_bytes(served: ServedModels, scope: Scope) -> int | None:
    if served.model_for_request(scope):
        return MAX_BODY_BYTES
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return MAX_REPOSITORY_BYTES if path.startswith("/v2/repository/") else None
