"""Readiness that tells the truth."""

from mlserver import MLModel
from mlserver.handlers import DataPlane
from mlserver.parallel.model import ParallelModel

from mlserver_timm.server.patches.graceful_stop import is_stopping
from mlserver_timm.server.patches.loading_workers import has_loaded_worker
from mlserver_timm.server.patches.replacing import replace
from mlserver_timm.server.patches.repository_race import is_changing
from mlserver_timm.server.served_models import is_timm_model

FAULT = (
    "A server whose model has failed to load says for a moment that it is ready, since it then has "
    "no model, one that is stopping goes on saying so, and one whose last worker has died too."
)
UPSTREAM = "https://github.com/SeldonIO/MLServer/issues/2056"
AFFECTS = ">=1.7.1,<1.8"


def apply() -> None:
    """A server that was started empty, for the repository API, stays ready."""
    replace(DataPlane, "ready", _ready)
    replace(DataPlane, "model_ready", _model_ready)


async def _ready(self: DataPlane) -> bool:
    if is_stopping() or _has_failed_model(self):
        return False
    return all(_serves(model) for model in await self._model_registry.get_models())


async def _model_ready(self: DataPlane, name: str, version: str | None = None) -> bool:
    return _serves(await self._model_registry.get_model(name, version))


def _has_failed_model(self: DataPlane) -> bool:
    """MLServer keeps a name without a model where the load at the server's start has failed."""
    return any(
        versions.empty() and not is_changing(name)
        for name, versions in self._model_registry._models.items()
    )


def _serves(model: MLModel) -> bool:
    if is_stopping() or not model.ready or (is_timm_model(model) and _cannot_answer(model)):
        return False
    return not isinstance(model, ParallelModel) or has_loaded_worker(model._dispatcher)


def _cannot_answer(model: MLModel) -> bool:
    """A model in worker processes is watched there, and they end."""
    pipeline = getattr(model, "pipeline", None)
    return bool(pipeline and pipeline.is_broken())
