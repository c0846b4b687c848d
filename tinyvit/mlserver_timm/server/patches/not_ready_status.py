"""503 while a model of this runtime is loading."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from mlserver import MLModel
from mlserver.handlers import DataPlane

from mlserver_timm.errors import ModelNotReady
from mlserver_timm.server.patches.replacing import replace
from mlserver_timm.server.served_models import ServedModels

FAULT = (
    "A request to a model that is still loading is answered with 400, as if it were wrong, so that "
    "clients and proxies do not send it again."
)
UPSTREAM = "https://github.com/SeldonIO/MLServer/issues/1134"
AFFECTS = ">=1.7.1,<1.8"


def apply() -> None:
    """Concerns this runtime's models alone: others keep the 400."""

    def infer_contextmanager(
        self: DataPlane, name: str, version: str | None = None
    ) -> AbstractAsyncContextManager[MLModel]:
        model = ServedModels(self._model_registry).find(name, version)
        if model and not model.ready:
            return _refused(self, name, version)
        return original(self, name, version)

    original = replace(DataPlane, "_infer_contextmanager", infer_contextmanager)


@asynccontextmanager
async def _refused(self: DataPlane, name: str, version: str | None) -> AsyncIterator[MLModel]:
    """Counts the refusal as MLServer does."""
    with self._ModelInferRequestFailure.labels(model=name, version=version).count_exceptions():
        raise ModelNotReady(name, version)
    yield  # makes it a generator
