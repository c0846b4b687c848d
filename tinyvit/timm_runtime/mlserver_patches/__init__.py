"""Where MLServer 1.7.1 falls short, and what is done about it: one file a fault."""

import functools

from mlserver import MLModel
from mlserver.rest import RESTServer

from .. import rest
from ..rest.served_models import is_ours


@functools.cache
def apply_all() -> None:
    """To be called before MLServer loads a model of this runtime, in every process."""
    original = RESTServer.add_custom_handlers

    async def add_custom_handlers(self: RESTServer, model: MLModel) -> MLModel:
        if is_ours(model):
            rest.install(self._app, self._data_plane)
        return await original(self, model)

    RESTServer.add_custom_handlers = add_custom_handlers
