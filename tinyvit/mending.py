"""Where MLServer 1.7.1 falls short, and what is done about it; a test shows each.

Everything here goes away with a release that does better: requirements.txt binds mlserver to 1.7.
"""

import asyncio
import atexit
import contextlib
import fcntl
import functools
import itertools
import logging
import multiprocessing
import os
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import prometheus_client
from mlserver import MLModel
from mlserver.errors import MLServerError
from mlserver.grpc.converters import ModelInferRequestConverter
from mlserver.grpc.utils import STATUS_CODE_MAPPING
from mlserver.handlers import DataPlane, ModelRepositoryHandlers, dataplane
from mlserver.metrics import REGISTRY as METRICS
from mlserver.parallel import InferencePoolRegistry
from mlserver.parallel import worker as parallel_worker
from mlserver.parallel.dispatcher import AsyncResponses, Dispatcher
from mlserver.parallel.messages import ModelRequestMessage, ModelResponseMessage
from mlserver.parallel.model import ParallelModel
from mlserver.rest import RESTServer, endpoints
from mlserver.server import HANDLED_SIGNALS, MLServer
from mlserver.settings import ModelSettings
from mlserver.types import InferenceRequest, InferenceResponse
from pydantic import ValidationError
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

import gate
from classifier import TimedOut
from configuration import ConfigurationError, read_configuration

EXIT_PATIENCE = 12.0
"""Seconds from the signal to stop until the process ends whatever is unfinished."""

CLEANING_PATIENCE = 2.0

WORKER_GRACE = 5.0
"""Seconds beyond a request's timeout, which is the worker's to keep, until it counts as hung."""


def mend(settings: ModelSettings) -> None:
    """To be called for each model before MLServer sees its settings, in every process."""
    keep_requests_apart(settings)
    _know_timeout(settings)
    _once()


@functools.cache
def _once() -> None:
    logging.getLogger("mlserver").addFilter(_without_traceback)
    logging.getLogger("mlserver.grpc").addFilter(_not_a_refusal)
    logging.getLogger("mlserver.parallel").addFilter(_not_a_refusal)
    if in_worker():
        _mend_worker()
        return
    prometheus_client.REGISTRY.register(METRICS)
    MLServer.stop = stop
    _give_signals_back()
    _open_the_gate()
    _mend_repository()
    _mend_streams()
    _mend_grpc()
    _mend_pool()


def _not_a_refusal(record: logging.LogRecord) -> bool:
    """Drops the tracebacks of requests that were refused, for which monitoring.py has a line, or
    given up."""
    given_up = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not (given_up or _is_a_sentence(record))


def _without_traceback(record: logging.LogRecord) -> bool:
    if _is_a_sentence(record):
        record.exc_info = None
    return True


def _is_a_sentence(record: logging.LogRecord) -> bool:
    """Whether the logged exception says all there is to say, being meant for people."""
    error = record.exc_info[1] if record.exc_info else None
    return isinstance(error, MLServerError) and error.status_code != 500


# --- Batching ---------------------------------------------------------------------------------


def keep_requests_apart(settings: ModelSettings) -> None:
    """Keeps MLServer's adaptive batcher out: it concatenates requests along the first axis before
    the model sees them, which cannot be right for images of different sizes (MLServer's issues
    903, 1306 and 1911). It starts only where max_batch_time > 0, so ours is kept negative; that
    survives the way to worker processes, and `abs` reads it.
    """
    settings.max_batch_time = -abs(settings.max_batch_time)


# --- Settings that MLServer completes ---------------------------------------------------------


def folder(settings: ModelSettings) -> Path:
    """The folder of model-settings.json; the working directory where there is no such file."""
    return Path(settings._source).parent if settings._source else Path.cwd()


def explicit_uri(settings: ModelSettings) -> str | None:
    """`parameters.uri` where somebody set it. MLServer fills in the model's own folder, which
    counts only where it holds a checkpoint."""
    uri = settings.parameters.uri if settings.parameters else None
    if uri == str(folder(settings)) and not (folder(settings) / "config.json").exists():
        return None
    return uri


# --- Worker processes -------------------------------------------------------------------------


def in_worker() -> bool:
    """Whether this process is one of the `parallel_workers`."""
    return isinstance(multiprocessing.current_process(), parallel_worker.Worker)


def share_of(cores: int) -> int:
    """This process' share of the cores: all of them, or a worker's part."""
    process = multiprocessing.current_process()
    workers = process._settings.parallel_workers if in_worker() else 1  # type: ignore[attr-defined]
    return max(1, cores // workers)


class PlainWorkerError(MLServerError):
    """What a worker answers instead of an exception: its sentence, without the class' name, which
    MLServer's own WorkerError puts before it; sentences of others stay out of answers."""

    def __init__(self, error: BaseException) -> None:
        if isinstance(error, MLServerError):
            super().__init__(str(error), error.status_code)
        else:
            super().__init__("The model failed on this request; the server's log says why.", 500)

    def __reduce__(self) -> tuple[Any, ...]:
        return MLServerError, (str(self), self.status_code)


class WorkerGone(MLServerError):
    """The worker process that had the request has died. It is not sent to another: what killed
    one may kill them all."""

    def __init__(self) -> None:
        super().__init__("The worker process on this request has died. Try again.", 503)


class NoWorker(MLServerError):
    """Every worker process is gone or still loading."""

    def __init__(self) -> None:
        super().__init__("No worker process is ready. Try again in a moment.", 503)


_timeouts: dict[str, float] = {}


def _know_timeout(settings: ModelSettings) -> None:
    with contextlib.suppress(ConfigurationError):  # load() will tell
        extra = settings.parameters.extra if settings.parameters else None
        _timeouts[settings.name] = read_configuration(extra).timeout


class PipeLock:
    """What multiprocessing takes around each write to a pipe of many writers, in the place of a
    semaphore: the kernel frees it when its holder is killed. Between processes, not threads."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def acquire(self) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)

    def release(self) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


def _mend_worker() -> None:
    parallel_worker.WorkerError = PlainWorkerError
    parallel_worker.Worker._process_request = _process_request
    responses = multiprocessing.current_process()._responses  # type: ignore[attr-defined]
    if responses._thread is None:  # else another model has answered with the lock as it was
        responses._wlock = PipeLock(responses._writer.fileno())


FORGET = "forget"
"""A message to a worker in the place of a method's name: give up the request in its argument."""

_under_way: "dict[str, asyncio.Task[Any] | None]" = {}


async def _process_request(
    self: parallel_worker.Worker, request: ModelRequestMessage
) -> ModelResponseMessage:
    """The worker's side of `_dispatch_request`."""
    if request.method_name == FORGET:
        task = _under_way.get(request.method_args[0])
        if task:
            task.cancel()
        return ModelResponseMessage(id=request.id)
    _under_way[request.id] = asyncio.current_task()
    try:
        return await _process_one(self, request)
    finally:
        del _under_way[request.id]


_process_one = parallel_worker.Worker._process_request


def _mend_pool() -> None:
    """Workers that die, at any time and several at once, or hang; requests given up."""
    Dispatcher.dispatch_request = _dispatch_request
    Dispatcher.on_worker_start = _on_worker_start
    Dispatcher.on_worker_ready = _on_worker_ready
    Dispatcher._reset_round_robin = _reset_round_robin
    Dispatcher._get_worker = _get_worker
    AsyncResponses.resolve = _resolve
    AsyncResponses.cancel = _cancel
    InferencePoolRegistry._handle_worker_stop = _handle_worker_stop
    DataPlane.ready = _ready
    DataPlane.model_ready = _model_ready


_loading: set[int] = set()


async def _on_worker_start(self: Dispatcher, worker: parallel_worker.Worker) -> None:
    """A worker that starts anew gets its models before it gets requests, also where another one
    has just become ready; MLServer then sends them to all."""
    async with self._worker_starting_lock:
        _loading.add(worker.pid)
        self._workers[worker.pid] = worker


def _on_worker_ready(self: Dispatcher, worker: parallel_worker.Worker) -> None:
    _loading.discard(worker.pid)
    self._reset_round_robin()


def _reset_round_robin(self: Dispatcher) -> Iterator[int]:
    self._workers_round_robin = itertools.cycle([p for p in self._workers if p not in _loading])
    return self._workers_round_robin


def _get_worker(self: Dispatcher) -> tuple[parallel_worker.Worker, int]:
    """503 where no worker is left, in the place of an error about StopIteration."""
    pid = next(self._workers_round_robin, None)
    if pid is None:
        raise NoWorker()
    return self._workers[pid], pid


async def _dispatch_request(self: Dispatcher, message: ModelRequestMessage) -> ModelResponseMessage:
    """Tells the worker of requests that were given up, and ends those it does not answer. One that
    has answered nothing at all meanwhile is killed, so that another takes its place."""
    worker, pid = self._get_worker()
    sent, timeout = time.monotonic(), _timeouts.get(message.model_name)
    worker.send_request(message)
    try:
        return await asyncio.wait_for(
            self._async_responses.schedule_and_wait(message, worker),
            timeout and timeout + WORKER_GRACE,
        )
    except asyncio.CancelledError:
        with contextlib.suppress(ValueError):  # the pool is closing
            worker.send_request(_forget(message))
        raise
    except asyncio.TimeoutError:
        if _heard_of.get(pid, sent) <= sent:
            worker.kill()
        raise TimedOut(timeout or 0) from None
    except MLServerError as error:
        # Frames below hold the future, which holds the error, and with it all of the request.
        traceback.clear_frames(error.__traceback__)
        raise


def _forget(message: ModelRequestMessage) -> ModelRequestMessage:
    return ModelRequestMessage(
        model_name=message.model_name, method_name=FORGET, method_args=[message.id]
    )


_heard_of: dict[int, float] = {}
"""When each worker last answered, by its process id; the monotonic clock."""


def _resolve(self: AsyncResponses, response: ModelResponseMessage) -> None:
    """Passes over the answers of requests that were given up; MLServer's loop ends on them."""
    future = self._futures.get(response.id)
    if future:
        _heard_of[self._futures_map[response.id]] = time.monotonic()
        future.get_loop().call_soon_threadsafe(_settle, future, response.exception, response)


def _cancel(self: AsyncResponses, worker: parallel_worker.Worker, exit_code: int) -> None:
    """Ends the requests that a worker has taken with it."""
    for message_id in list(self._workers_map[worker.pid]):
        _settle(self._futures[message_id], WorkerGone(), None)


def _settle(future: "asyncio.Future[Any]", error: BaseException | None, result: Any) -> None:
    """Unless it was given up, also between an answer's arrival and now."""
    if future.done():
        return
    if error:
        future.set_exception(error)
    else:
        future.set_result(result)


async def _handle_worker_stop(self: InferencePoolRegistry, *_: Any) -> None:
    """Sees to all processes that have ended; one signal may stand for several of them."""
    if _stopping.is_set():
        return
    ended = []
    with contextlib.suppress(ChildProcessError):
        while (status := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append(status)
    pools = [self._default_pool, *self._pools.values()]
    await asyncio.gather(
        *[pool.on_worker_stop(pid, code) for pid, code in ended if code for pool in pools]
    )


async def _ready(self: DataPlane) -> bool:
    """MLServer goes by the model alone, which stays ready when its last worker has died."""
    return all(_serves(model) for model in await self._model_registry.get_models())


async def _model_ready(self: DataPlane, name: str, version: str | None = None) -> bool:
    return _serves(await self._model_registry.get_model(name, version))


def _serves(model: MLModel) -> bool:
    if not isinstance(model, ParallelModel):
        return model.ready
    return model.ready and not _loading.issuperset(model._dispatcher._workers)


# --- REST and gRPC ----------------------------------------------------------------------------


def _open_the_gate() -> None:
    """MLServer offers no place to add middleware, but adds each model's routes."""
    original = RESTServer.add_custom_handlers

    async def add_custom_handlers(self: RESTServer, model: MLModel) -> MLModel:
        gate.install(self._app)
        return await original(self, model)

    RESTServer.add_custom_handlers = add_custom_handlers


class NotReady(MLServerError):
    """The model is still loading: nothing is wrong with the request, as MLServer's 400 says."""

    def __init__(self, name: str, version: str | None = None) -> None:
        super().__init__(f"The model '{name}' is not ready. Try again in a moment.", 503)


def _mend_repository() -> None:
    """One reload after the other: of two at once, MLServer unloads the old model twice and one of
    the new ones never."""
    dataplane.ModelNotReady = NotReady
    lock = asyncio.Lock()
    for name in ("load", "unload"):
        setattr(ModelRepositoryHandlers, name, _alone(getattr(ModelRepositoryHandlers, name), lock))


def _alone(original: Callable[..., Any], lock: asyncio.Lock) -> Callable[..., Any]:
    async def alone(self: ModelRepositoryHandlers, name: str) -> bool:
        async with lock:
            return await original(self, name)

    return alone


def _mend_streams() -> None:
    endpoints.StreamingResponse = WholeStream
    MLModel.predict_stream = _predict_stream


class WholeStream(StreamingResponse):
    """Sent once it is complete, which for one request is one answer, so that a refusal still has
    its status; MLServer sends 200 first and then breaks off."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events: list[Any] = [event async for event in self.body_iterator]
        await Response(b"".join(events), media_type=self.media_type)(scope, receive, send)


async def _predict_stream(
    self: MLModel, payloads: AsyncIterator[InferenceRequest]
) -> AsyncIterator[InferenceResponse]:
    """An answer for each request of a gRPC stream; MLServer's own drops all but the first."""
    async for payload in payloads:
        yield await self.predict(payload)


def _mend_grpc() -> None:
    """Status codes for what MLServer knows in REST only, and an answer for tensors whose bytes do
    not make up their shape, on which its converter fails."""
    STATUS_CODE_MAPPING.update(
        {
            503: grpc.StatusCode.UNAVAILABLE,
            504: grpc.StatusCode.DEADLINE_EXCEEDED,
        }
    )
    original = ModelInferRequestConverter.to_types

    def to_types(request: Any) -> InferenceRequest:
        try:
            return original(request)
        except ValidationError:
            raise MLServerError(
                "The parameter 'content_type' must be text, and 'headers' must not be given."
            ) from None
        except (struct.error, IndexError, KeyError, ValueError, TypeError, OverflowError):
            raise MLServerError(
                "The request's tensors cannot be read: their bytes do not make up their shapes."
            ) from None

    ModelInferRequestConverter.to_types = to_types


# --- Stopping ---------------------------------------------------------------------------------


def _give_signals_back() -> None:
    """Lets MLServer hear of signals. It overrides uvicorn's `install_signal_handlers` for that,
    which uvicorn has not called since 0.29; asyncio needs only that a handler is installed."""
    for number in HANDLED_SIGNALS:
        signal.signal(number, lambda *_: None)


_stopping = threading.Event()


async def stop(self: MLServer, sig: int | None = None) -> None:
    """Takes the place of `MLServer.stop`: everything accepted is answered before the workers go,
    a second signal changes nothing, and the process ends, with a status that tells how.

    MLServer calls it without a signal where a model failed to load, and then exits with 0. Its
    own version closes the workers first, runs once per signal, and waits for ever for a worker
    that is still loading.
    """
    if _stopping.is_set():
        return
    _stopping.set()
    end = functools.partial(_end, sys.exc_info()[1] if sig is None else None)
    watchdog = threading.Timer(EXIT_PATIENCE, end)
    watchdog.daemon = True
    watchdog.start()
    rest = self._rest_server._server
    rest.handle_exit(sig or signal.SIGINT, None)
    await asyncio.gather(
        self._grpc_server._server.stop(grace=EXIT_PATIENCE - 2), _finished(rest.server_state)
    )
    end()


async def _finished(state: Any) -> None:
    while state.connections or state.tasks:
        await asyncio.sleep(0.02)


def _end(failure: BaseException | None) -> None:
    for child in multiprocessing.active_children():
        child.kill()
    # Flushes spans and unlinks semaphores; not for long, since a collector may be out of reach.
    cleaning = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    cleaning.start()
    cleaning.join(CLEANING_PATIENCE)
    if failure:
        print(f"The server stops, because its model cannot be loaded: {failure}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if failure else 0)
