"""A place for this runtime's middleware, error handlers and routes."""

from mlserver import MLModel
from mlserver.rest import RESTServer

from mlserver_timm.server import application as rest
from mlserver_timm.server.patches.replacing import replace
from mlserver_timm.server.served_models import is_timm_model

FAULT = (
    "A runtime cannot add middleware, error handlers or routes that match its own models only: "
    "MLServer knows custom handlers with a fixed path."
)
UPSTREAM = "unreported; tests/patches/test_middleware_place.py"
AFFECTS = ">=1.7.1,<1.8"


def apply() -> None:
    async def add_custom_handlers(self: RESTServer, model: MLModel) -> MLModel:
        if is_timm_model(model):
            rest.install(self._app, self._data_plane)
        return await original(self, model)

    original = replace(RESTServer, "add_custom_handlers", add_custom_handlers)
