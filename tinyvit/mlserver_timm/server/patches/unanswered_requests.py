"""Requests to workers that are not answered: too late, given up, or lost."""

import asyncio
import contextlib
import time
import traceback
from typing import Any

from mlserver.errors import MLServerError, ModelNotFound
from mlserver.parallel.dispatcher import Dispatcher
from mlserver.parallel.errors import WorkerStop
from mlserver.parallel.messages import ModelRequestMessage, ModelResponseMessage
from mlserver.parallel.model import ParallelModel
from mlserver.parallel.worker import Worker

from mlserver_timm.errors import RequestFailed, RequestTimedOut, SettingsError, WorkerLost
from mlserver_timm.server.patches.given_up_requests import forget
from mlserver_timm.server.patches.late_answers import LAST_ANSWERS
from mlserver_timm.server.patches.refusal_tracebacks import is_our_error
from mlserver_timm.server.patches.replacing import replace
from mlserver_timm.server.served_models import is_timm_model
from mlserver_timm.settings import read_settings

FAULT = (
    "A request to a worker that hangs waits for ever, one whose client has gone is computed all "
    "the same, and one whose worker has died gets 500, as if it could not be sent again."
)
UPSTREAM = "unreported; tests/patches/test_unanswered_requests.py"
AFFECTS = ">=1.7.1,<1.8"

WORKER_GRACE = 5.0
"""Seconds beyond a request's timeout, which is the worker's to keep, until it counts as hung."""

_in_flight: set[str] = set()
"""Ids of requests to models of this runtime."""


def apply() -> None:
    """Concerns this runtime's models alone; a hung worker is ended only where no other model has a
    request in it."""

    async def send(self: ParallelModel, method_name: str, *args: Any, **kwargs: Any) -> Any:
        if not is_timm_model(self):
            return await original(self, method_name, *args, **kwargs)
        message = ModelRequestMessage(
            model_name=self.name,
            model_version=self.version,
            method_name=method_name,
            method_args=args,
            method_kwargs=kwargs,
        )
        return (await _answer(self, message)).return_value

    original = replace(ParallelModel, "_send", send)


async def _answer(model: ParallelModel, message: ModelRequestMessage) -> ModelResponseMessage:
    try:
        return await _dispatch(model._dispatcher, message, _timeout(model))
    except WorkerStop:
        raise WorkerLost() from None
    except MLServerError as error:
        # Frames below hold the future, which holds the error, and with it all of the request.
        traceback.clear_frames(error.__traceback__)
        if is_our_error(error):
            raise
        if isinstance(error, MLServerError) and error.status_code == 404:  # unloaded meanwhile
            raise ModelNotFound(model.name, model.version) from None
        raise RequestFailed() from None


async def _dispatch(
    dispatcher: Dispatcher, message: ModelRequestMessage, timeout: float
) -> ModelResponseMessage:
    worker, pid = dispatcher._get_worker()
    responses = dispatcher._async_responses
    sent = time.monotonic()
    worker.send_request(message)
    _in_flight.add(message.id)
    try:
        return await asyncio.wait_for(
            responses.schedule_and_wait(message, worker), timeout + WORKER_GRACE
        )
    except asyncio.CancelledError:
        with contextlib.suppress(ValueError):  # the worker is gone, or the pool is closing
            worker.send_request(forget(message))
        raise
    except asyncio.TimeoutError:
        if LAST_ANSWERS.get(pid, sent) <= sent and responses._workers_map[pid] <= _in_flight:
            _end(worker)
        raise RequestTimedOut(timeout) from None
    finally:
        _in_flight.discard(message.id)


def _end(worker: Worker) -> None:
    """That it has ended is noticed, and another takes its place."""
    if worker.is_alive():
        worker.kill()


def _timeout(model: ParallelModel) -> float:
    """Of this model's settings, read once."""
    known = vars(model)
    if "request_timeout" not in known:
        parameters = model.settings.parameters
        try:
            settings = read_settings(parameters.extra if parameters else None)
        except SettingsError:  # of another copy of this runtime, which knows more
            settings = read_settings({})
        known["request_timeout"] = settings.timeout
    return float(known["request_timeout"])
