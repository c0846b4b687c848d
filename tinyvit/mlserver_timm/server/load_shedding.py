"""Refusals of a flood, at a fraction of what an answer costs."""

from mlserver.errors import MLServerError
from starlette.types import ASGIApp, Receive, Scope, Send

from mlserver_timm.server.error_handlers import refusal
from mlserver_timm.server.served_models import ServedModels


class LoadSheddingMiddleware:
    """Answers 503 while a model's queue is full, before the body is read, so that a flood leaves
    time for those who were taken in. Models in worker processes refuse there."""

    def __init__(self, app: ASGIApp, served: ServedModels) -> None:
        self._app = app
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            error = self._error(scope)
            if error:
                app = refusal(error)
        await app(scope, receive, send)

    def _error(self, scope: Scope) -> MLServerError | None:
        pipeline = getattr(self._served.model_for_request(scope), "pipeline", None)
        if not pipeline:
            return None
        try:
            pipeline.check_room()
        except MLServerError as error:
            pipeline.metrics.refused("(unread)", error)
            return error
        return None
