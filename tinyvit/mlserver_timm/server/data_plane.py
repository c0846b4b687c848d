"""MLServer's data plane, repository handlers and workers, for models of this runtime too."""

import asyncio
import random
import re
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from mlserver import MLModel, handlers, parallel
from mlserver.errors import MLServerError, ModelNotFound
from mlserver.parallel.pool import InferencePool, InferencePoolHook
from mlserver.parallel.utils import configure_inference_pool
from mlserver.registry import MultiModelRegistry
from mlserver.repository import ModelRepository
from mlserver.settings import ModelSettings, Settings
from mlserver.types import InferenceResponse, MetadataModelResponse
from mlserver.utils import extract_headers
from starlette.types import Scope

from mlserver_timm.errors import InvalidRequest, ModelNotReady, short
from mlserver_timm.metrics import loaded_models
from mlserver_timm.protocol.request import MAX_ID, InferRequest
from mlserver_timm.protocol.response import ClassificationResponse
from mlserver_timm.runtime import TimmModel
from mlserver_timm.server.limits import BODY_TIMEOUT, MAX_HELD_BYTES, READER_THREADS, BodyBudget

PATH = re.compile(r"/v2/models/(?P<name>[^/]+)(/versions/(?P<version>[^/]+))?(/.*)?", re.DOTALL)

_ids = random.Random()
"""Makes the ids of requests without one. MLServer's come from the kernel, and the GIL is released
for that, which delays the request while another thread computes."""

T = TypeVar("T")

STATE = "model"
"""Key of the requested model in an ASGI scope's state."""


def route_path(scope: Scope) -> str:
    """Return a request's path without the prefix that MLServer's `root_path` names."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def unknown_model(name: str, version: str | None) -> MLServerError:
    """Return the error for a model that is not served, without the whole of a long name."""
    length = max(len(name), len(version or ""))
    if length > MAX_ID:
        return InvalidRequest(
            f"The model's name or version has {length} characters: at most {MAX_ID} are accepted."
        )
    return ModelNotFound(short(name), short(version) if version else None)


class TimmModels:
    """The models that MLServer serves, and which of them are of this runtime."""

    def __init__(self, registry: MultiModelRegistry) -> None:
        self._registry = registry

    def served(self, name: str, version: str | None = None) -> MLModel | None:
        """Return the model that MLServer would use, of any runtime, or None."""
        versions = self._registry._models.get(name)
        return versions._find_model(version) if versions else None

    def require(self, name: str, version: str | None = None) -> MLModel:
        """Return the model that MLServer would use; raise ModelNotFound, or InvalidRequest for a
        name that is too long."""
        model = self.served(name, version)
        if model is None:
            raise unknown_model(name, version)
        return model

    def model_for_request(self, scope: Scope) -> TimmModel | None:
        """Return the model of this runtime that an HTTP request names; it is looked up once, and
        a model of any runtime stays in the request's state."""
        state: dict[str, Any] = scope.setdefault("state", {})
        if STATE not in state:
            match = PATH.fullmatch(route_path(scope))
            state[STATE] = self.served(match["name"], match["version"]) if match else None
        model = state[STATE]
        return model if isinstance(model, TimmModel) else None

    def is_timm_or_unknown_model(self, scope: Scope) -> bool:
        """Return whether an HTTP request names no model of another runtime."""
        return self.model_for_request(scope) is not None or scope["state"][STATE] is None

    def __iter__(self) -> Iterator[TimmModel]:
        """Yield every model and version of this runtime, sorted by name."""
        for _, versions in sorted(self._registry._models.items()):
            models = dict.fromkeys([*versions._versions.values(), versions.default])
            yield from (model for model in models if isinstance(model, TimmModel))


class DataPlane(handlers.DataPlane):
    """Knows which models are of this runtime, and is ready only if every model answers."""

    stopping = False

    def __init__(self, settings: Settings, model_registry: MultiModelRegistry) -> None:
        super().__init__(settings, model_registry)
        self.timm_models = TimmModels(model_registry)
        self.models_loaded = asyncio.Event()
        """Cleared while start-up models load."""
        self.models_loaded.set()
        self.message_budget = BodyBudget(MAX_HELD_BYTES, BODY_TIMEOUT)
        """Memory for the gRPC messages that have arrived."""
        self.readers = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="reader")
        """Threads that read large bodies and gRPC messages."""
        loaded_models()  # before a model is loaded, its 0 says that this server has none

    async def ready(self) -> bool:
        """Return whether every model answers; False while start-up models load, once a stop has
        begun, and if a server that loads models at start-up has none left.

        See MLServer issue 2056.
        """
        if self.stopping or not self.models_loaded.is_set():
            return False
        models = list(await self._model_registry.get_models())
        has_models = bool(models) or not self._settings.load_models_at_startup
        return has_models and all(map(_answers, models))

    async def model_ready(self, name: str, version: str | None = None) -> bool:
        """Return whether a model answers; False once a stop has begun
        (tests/hook/test_data_plane.py)."""
        return not self.stopping and _answers(self.timm_models.require(name, version))

    async def model_metadata(self, name: str, version: str | None = None) -> MetadataModelResponse:
        """Return a model's metadata, without a long unknown name in the log or the response
        (tests/hook/test_unknown_models.py)."""
        self.timm_models.require(name, version)
        return await super().model_metadata(name, version)

    async def classify(
        self, request: InferRequest, name: str, version: str | None = None
    ) -> tuple[ClassificationResponse, dict[str, str]]:
        """Return a model's answer and its headers, counted by MLServer's metrics.

        MLServer's `infer` takes a request in its own types, which have lists of Python numbers in
        place of arrays.
        """
        if request.id is None:
            request = replace(request, id=str(uuid.UUID(int=_ids.getrandbits(128), version=4)))
        async with self._infer_contextmanager(name, version) as model:
            response: ClassificationResponse = await model.predict(request)
            event = InferenceResponse.model_construct(id=request.id, parameters=None)
            self._inference_middleware.response_middleware(event, model.settings)
            headers = extract_headers(event) or {}
            # Headers are ASCII, and a model may have any name.
            return response, {k: v.encode("ascii", "replace").decode() for k, v in headers.items()}

    def _infer_contextmanager(
        self, name: str, version: str | None = None
    ) -> AbstractAsyncContextManager[MLModel]:
        """Raise ModelNotReady (503) while a model of this runtime loads, and count no request to an
        unknown model: its name would stay a metric's label (tests/hook/test_unknown_models.py).

        MLServer issue 1134: it answers 400, which clients do not retry.
        """
        model = self.timm_models.require(name, version)
        if isinstance(model, TimmModel) and not model.ready:
            raise ModelNotReady(name, version)
        return super()._infer_contextmanager(name, version)


def _answers(model: MLModel) -> bool:
    pipeline = model.__dict__.get("pipeline") if isinstance(model, TimmModel) else None
    return model.ready and not (pipeline and pipeline.is_broken())


class ModelRepositoryHandlers(handlers.ModelRepositoryHandlers):
    """Runs one load or unload of a model at a time.

    If two requests load a model at once, MLServer unloads the old model twice and never unloads
    one of the new models (tests/hook/test_data_plane.py).
    """

    def __init__(self, repository: ModelRepository, model_registry: MultiModelRegistry) -> None:
        super().__init__(repository, model_registry)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def load(self, name: str) -> bool:
        """Load a model after the requests for the same name that came before."""
        return await self.one_at_a_time(name, partial(super().load, name))

    async def unload(self, name: str) -> bool:
        """Unload a model after the requests for the same name that came before."""
        return await self.one_at_a_time(name, partial(super().unload, name))

    async def one_at_a_time(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `work`, which is finished even if the client cancels the call:
        MLServer would keep a partly loaded model (tests/hook/test_data_plane.py)."""
        if len(name) > MAX_ID:
            raise unknown_model(name, None)

        async def locked() -> T:
            async with self._locks.setdefault(name, asyncio.Lock()):
                return await work()

        task = asyncio.create_task(locked())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except ModelNotFound:
            raise unknown_model(name, None) from None


class InferencePoolRegistry(parallel.InferencePoolRegistry):
    """Keeps models of this runtime out of MLServer's workers, and starts workers once another
    model needs them."""

    def __init__(self, settings: Settings, on_worker_stop: list[InferencePoolHook] = []) -> None:  # noqa: B006
        """Start no workers yet; MLServer starts them at once (tests/hook/test_workers.py)."""
        configure_inference_pool(settings)  # else left out, because the pool has no workers yet
        super().__init__(settings.model_copy(update={"parallel_workers": 0}), on_worker_stop)
        # Workers unpickle the settings, and must not need this package for that.
        self._settings = settings.model_copy(update={"model_repository_implementation": None})
        self._default_pool._settings = self._settings
        self._workers_to_start = settings.parallel_workers
        self._starting = asyncio.Lock()

    def _should_load_model(self, model_settings: ModelSettings) -> bool:
        """Return whether a model is loaded in a worker: never one of this runtime, whose
        `parallel_workers` is 0 and for which MLServer would log a warning at each load
        (tests/hook/test_workers.py)."""
        return model_settings.parallel_workers != 0 and super()._should_load_model(model_settings)

    async def _get_or_create(self, model: MLModel) -> InferencePool:
        """Return the model's pool, and start the default pool's workers for the first model that
        uses them (tests/hook/test_workers.py)."""
        pool = await super()._get_or_create(model)
        async with self._starting:
            while pool is self._default_pool and self._workers_to_start:
                self._workers_to_start -= 1
                await pool._start_worker()
        return pool

    async def _handle_worker_stop(self, *_: Any) -> None:
        """Replace each worker that has died, and leave other child processes alone.

        MLServer's waitpid(-1) takes the exit status of any child (tests/hook/test_workers.py).
        """
        await asyncio.gather(
            *[
                pool.on_worker_stop(worker.pid, worker.exitcode)
                for pool in [self._default_pool, *self._pools.values()]
                for worker in pool._workers.values()
                if worker.exitcode
            ]
        )
