"""One answer, as a stream of one event."""

from typing import Any

from mlserver.handlers import DataPlane
from mlserver.rest.app import APIRoute
from mlserver.rest.responses import ServerSentEvent
from mlserver.types import InferenceRequest
from mlserver.utils import insert_headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from .served_models import ServedModels

PATHS = [
    f"/v2/models/{{model_name}}{version}/{verb}"
    for version in ("", "/versions/{model_version}")
    for verb in ("infer_stream", "generate_stream")
]


def stream_routes(data_plane: DataPlane, served: ServedModels) -> list[APIRoute]:
    """For this runtime's models; other models' streams are MLServer's.

    MLServer's own send status 200 before the model has seen the request, and break off where it is
    refused.
    """

    async def infer_stream(
        raw_request: Request,
        payload: InferenceRequest,
        model_name: str,
        model_version: str | None = None,
    ) -> Response:
        insert_headers(payload, dict(raw_request.headers))
        answer = await data_plane.infer(payload, model_name, model_version)
        return Response(ServerSentEvent(answer).encode(), media_type="text/event-stream")

    return [_StreamRoute(path, infer_stream, served, methods=["POST"]) for path in PATHS]


class _StreamRoute(APIRoute):
    def __init__(self, path: str, endpoint: Any, served: ServedModels, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self._served = served

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match is not Match.NONE and not self._served.addressed(scope):
            return Match.NONE, {}
        return match, child
