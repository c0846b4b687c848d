"""A stop in which nothing that was accepted is lost, and which ends."""

import asyncio
import atexit
import contextlib
import functools
import glob
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from mlserver.server import MLServer

from mlserver_timm.server.patches.replacing import replace
from mlserver_timm.server.served_models import PATH, ServedModels

FAULT = (
    "MLServer.stop ends the workers before the requests they have are answered, once per signal, "
    "waits for ever for a worker that is still loading, and exits with 0 where a model has failed."
)
UPSTREAM = "unreported; tests/patches/test_graceful_stop.py"
AFFECTS = ">=1.7.1,<1.8"

EXIT_PATIENCE = 12.0
"""Seconds from the signal to stop until the process ends whatever is unfinished; requests to other
models, which MLServer does not limit, are waited for."""

CLEANING_PATIENCE = 2.0

CLOSING_PATIENCE = 0.02
"""Seconds until the event loop has closed what it listens on."""

_stopping = threading.Event()


def apply() -> None:
    replace(MLServer, "stop", _stop)


def is_stopping() -> bool:
    """Whether a stop has begun."""
    return _stopping.is_set()


async def _stop(self: MLServer, sig: int | None = None) -> None:
    """Everything accepted is answered before the workers go, and a second signal changes nothing.

    MLServer calls it without a signal where a model failed to load at the start.
    """
    if _stopping.is_set():
        return
    _stopping.set()
    failure = sys.exc_info()[1] if sig is None else None
    metrics_dir = self._settings.metrics_dir if self._settings.parallel_workers else None

    def end() -> None:
        end_process(str(failure) if failure else None, metrics_dir)

    rest = self._rest_server._server
    threading.Thread(target=_watch, args=(self, rest.server_state, end), daemon=True).start()
    await _stop_listening(rest)
    rest.handle_exit(sig or signal.SIGINT, None)
    if self._kafka_server:
        await self._kafka_server.stop()
    await asyncio.gather(
        self._grpc_server._server.stop(grace=EXIT_PATIENCE - 2), _finished(rest.server_state)
    )
    end()


async def _stop_listening(rest: uvicorn.Server) -> None:
    """Takes in what waits to be accepted, which the kernel would reset as uvicorn closes."""
    loop = asyncio.get_running_loop()
    protocol_class: Any = rest.config.http_protocol_class
    protocol = functools.partial(
        protocol_class,
        config=rest.config,
        server_state=rest.server_state,
        app_state=rest.lifespan.state,
    )
    for server in getattr(rest, "servers", []):  # none before it has started
        listeners = [socket.socket(fileno=os.dup(one.fileno())) for one in server.sockets]
        server.close()
        await asyncio.sleep(CLOSING_PATIENCE)
        for connection in [one for listener in listeners for one in _accepted(listener)]:
            await loop.connect_accepted_socket(protocol, connection)


def _accepted(listener: socket.socket) -> list[socket.socket]:
    connections = []
    with listener, contextlib.suppress(BlockingIOError):
        listener.setblocking(False)
        while True:
            connections.append(listener.accept()[0])
    return connections


async def _finished(state: Any) -> None:
    while state.connections or state.tasks:
        await asyncio.sleep(0.02)


def _watch(self: MLServer, state: Any, end: Callable[[], None]) -> None:
    time.sleep(EXIT_PATIENCE)
    served = ServedModels(self._model_registry)
    while any(_is_of_another_model(connection, served) for connection in list(state.connections)):
        time.sleep(0.5)
    end()


def _is_of_another_model(connection: Any, served: ServedModels) -> bool:
    """Whether uvicorn's connection has a request, received whole, to a model of somebody else."""
    cycle = getattr(connection, "cycle", None)
    if cycle is None or cycle.response_complete or cycle.more_body:
        return False
    return bool(PATH.fullmatch(cycle.scope["path"])) and not served.model_for_request(cycle.scope)


def end_process(failure: str | None, metrics_dir: str | None = None) -> None:
    """Ends this process and its workers, with status 1 and a closing sentence after a failure."""
    pids = [os.getpid()]
    for child in multiprocessing.active_children():
        pids.append(child.pid or 0)
        child.kill()
    if metrics_dir:
        _remove_metrics(metrics_dir, pids)
    # Flushes spans and unlinks semaphores; not for long, since a collector may be out of reach.
    cleaning = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    cleaning.start()
    cleaning.join(CLEANING_PATIENCE)
    if failure:
        print(f"The server stops: {failure}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if failure else 0)


def _remove_metrics(folder: str, pids: list[int]) -> None:
    """Else they would be added to those of the next process with the same number."""
    for pid in pids:
        for path in glob.glob(f"*_{pid}.db", root_dir=folder):
            Path(folder, path).unlink(missing_ok=True)
