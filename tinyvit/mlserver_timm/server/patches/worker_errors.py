"""A worker's refusals, as the client is to read them."""

from contextvars import ContextVar

from mlserver.errors import MLServerError
from mlserver.parallel import worker as parallel_worker
from mlserver.parallel.messages import ModelRequestMessage, ModelResponseMessage
from mlserver.parallel.worker import Worker

from mlserver_timm.errors import TimmRuntimeError
from mlserver_timm.server.patches.refusal_tracebacks import is_our_error
from mlserver_timm.server.patches.replacing import replace
from mlserver_timm.server.served_models import ServedModels

FAULT = "A worker puts the Python class of an error before its text, which clients then read."
UPSTREAM = "unreported; tests/patches/test_worker_errors.py"
AFFECTS = ">=1.7.1,<1.8"

_for_ours: ContextVar[bool] = ContextVar("for_ours", default=False)
"""Whether the current task answers a request to a model of this runtime."""


def apply() -> None:
    """Concerns this runtime's models alone."""

    async def process_request(self: Worker, request: ModelRequestMessage) -> ModelResponseMessage:
        served = ServedModels(self._model_registry)
        _for_ours.set(served.find(request.model_name, request.model_version) is not None)
        return await process_original(self, request)

    def worker_error(error: BaseException) -> MLServerError:
        refused = isinstance(error, MLServerError) and _for_ours.get()
        if refused or is_our_error(error):
            return _as_it_is(error)
        return error_original(error)

    process_original = replace(Worker, "_process_request", process_request)
    error_original = replace(parallel_worker, "WorkerError", worker_error)


def _as_it_is(error: BaseException) -> MLServerError:
    """Return the error as a class that can be pickled: subclasses have arguments of their own."""
    answer = TimmRuntimeError(str(error))
    answer.status_code = getattr(error, "status_code", 500)
    answer.retry_after = getattr(error, "retry_after", None)
    return answer
