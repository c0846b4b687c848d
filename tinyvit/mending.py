"""Where MLServer 1.7.1 falls short, and what is done about it; a test shows each.

Everything here goes away with a release that does better: requirements.txt binds mlserver to 1.7.
"""

import asyncio
import functools
import logging
import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

from mlserver.errors import MLServerError
from mlserver.parallel import worker as parallel_worker
from mlserver.server import HANDLED_SIGNALS, MLServer
from mlserver.settings import ModelSettings

EXIT_PATIENCE = 12.0
"""Seconds from the signal to stop until the process ends whatever is unfinished."""

logger = logging.getLogger("mlserver.tinyvit")


def mend(settings: ModelSettings) -> None:
    """To be called for each model before MLServer sees its settings, in every process."""
    keep_requests_apart(settings)
    _once()


@functools.cache
def _once() -> None:
    if in_worker():
        parallel_worker.WorkerError = PlainWorkerError
    else:
        MLServer.stop = stop
        _give_signals_back()


# --- Batching ---------------------------------------------------------------------------------


def keep_requests_apart(settings: ModelSettings) -> None:
    """Keeps MLServer's adaptive batcher out: it concatenates requests along the first axis before
    the model sees them, which cannot be right for images of different sizes (MLServer's issues
    903, 1306 and 1911). It starts only where max_batch_time > 0, so ours is kept negative; that
    survives the way to worker processes, and `abs` reads it.
    """
    settings.max_batch_time = -abs(settings.max_batch_time)


# --- Settings that MLServer completes ---------------------------------------------------------


def folder(settings: ModelSettings) -> str:
    """The folder of model-settings.json; the working directory where there is no such file."""
    return os.path.dirname(settings._source) if settings._source else os.getcwd()


def explicit_uri(settings: ModelSettings) -> str | None:
    """`parameters.uri` where somebody set it. MLServer fills in the model's own folder, which
    counts only where it holds a checkpoint."""
    uri = settings.parameters.uri if settings.parameters else None
    if uri == folder(settings) and not os.path.exists(os.path.join(uri, "config.json")):
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


# --- Stopping ---------------------------------------------------------------------------------


def _give_signals_back() -> None:
    """Lets MLServer hear of signals. It overrides uvicorn's `install_signal_handlers` for that,
    which uvicorn has not called since 0.29; asyncio needs only that a handler is installed."""
    for number in HANDLED_SIGNALS:
        signal.signal(number, lambda *_: None)


async def stop(self: MLServer, sig: int | None = None) -> None:
    """Takes the place of `MLServer.stop`: everything accepted is answered before the workers go,
    a second signal changes nothing, and the process ends, with a status that tells how.

    MLServer calls it without a signal where a model failed to load, and then exits with 0. Its
    own version closes the workers first, runs once per signal, and waits for ever for a worker
    that is still loading.
    """
    if getattr(self, "_stopping", False):
        return
    self._stopping = True
    failure = sys.exc_info()[1] if sig is None else None
    last_word = functools.partial(_end, failure)
    watchdog = threading.Timer(EXIT_PATIENCE, last_word)
    watchdog.daemon = True
    watchdog.start()
    rest = self._rest_server._server
    rest.handle_exit(sig or signal.SIGINT, None)
    await asyncio.gather(
        self._grpc_server._server.stop(grace=EXIT_PATIENCE - 2), _finished(rest.server_state)
    )
    last_word()


async def _finished(state: Any) -> None:
    while state.connections or state.tasks:
        await asyncio.sleep(0.02)


def _end(failure: BaseException | None) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else MLServer starts the workers anew
    for child in multiprocessing.active_children():
        child.kill()
        child.join(1)
    logging.shutdown()
    if failure:
        print(f"The server stops, because its model cannot be loaded: {failure}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if failure else 0)
