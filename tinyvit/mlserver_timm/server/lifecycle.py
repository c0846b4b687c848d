"""The start and the end of the server process."""

import asyncio
import atexit
import glob
import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import NoReturn

from mlserver import server
from mlserver.repository import DEFAULT_MODEL_SETTINGS_FILENAME
from mlserver.settings import ModelSettings, Settings
from mlserver.utils import logger

from mlserver_timm.errors import SettingsError, TimmRuntimeError
from mlserver_timm.memory import keep_freed_memory
from mlserver_timm.server.data_plane import DataPlane
from mlserver_timm.server.limits import STOP_TIMEOUT
from mlserver_timm.server.logs import log_json, log_last_words
from mlserver_timm.settings import read_model_settings

EXIT_TIMEOUT = 2.0
"""Seconds for exit handlers; the one of OpenTelemetry sends spans, perhaps to a collector that is
unreachable."""


class MLServer(server.MLServer):
    """The server of `mlserver start`; it ends the process itself.

    Python would wait for threads, such as one that loads a model, and they cannot be interrupted.
    """

    _data_plane: DataPlane

    def _configure_logger(self) -> None:
        """Write valid JSON if structured logs are on, unless an operator has configured logs.

        MLServer escapes nothing, and leaves uvicorn's lines as they are (tests/hook/test_logs.py).
        """
        super()._configure_logger()
        if self._settings.use_structured_logging and not self._settings.logging_settings:
            log_json()

    async def start(self, models_settings: Sequence[ModelSettings] = ()) -> None:
        """Check settings files and ports first, and end with status 1 if a start-up model fails.

        MLServer ends with status 0 (tests/hook/test_start.py).
        """
        try:
            check_ports(self._settings)
            if self._settings.load_models_at_startup:
                check_model_settings(self._settings.model_repository_root)
        except SettingsError as error:
            end_process(error)
        keep_freed_memory()
        self._data_plane.models_loaded.clear()
        servers = asyncio.ensure_future(super().start([]))
        try:
            # Requests of the repository API for a model come after its load.
            one_at_a_time = self._model_repository_handlers.one_at_a_time
            load = self._model_registry.load
            await asyncio.gather(
                *[one_at_a_time(m.name, partial(load, m)) for m in models_settings]
            )
            self._data_plane.models_loaded.set()
            await servers
        except Exception as error:
            if self._data_plane.stopping:  # `stop` ends the process once requests are answered
                await asyncio.Event().wait()
            if not isinstance(error, TimmRuntimeError):
                logger.exception("The server cannot start.")
            await self.stop(failure=error)

    async def stop(self, sig: int | None = None, failure: Exception | None = None) -> None:
        """Answer accepted requests, close the workers, then end the process; do it once.

        MLServer closes the workers first, and does all of it again for each signal
        (tests/hook/test_stop.py).
        """
        if self._data_plane.stopping:
            return
        self._data_plane.stopping = True
        try:
            await asyncio.gather(self._grpc_server.stop(sig), self._rest_server.stop(sig))
            # A worker that does not end blocks the event loop.
            timer = threading.Timer(STOP_TIMEOUT, end_process, [failure])
            timer.daemon = True
            timer.start()
            await super().stop(sig)
        finally:
            end_process(failure)


def check_ports(settings: Settings) -> None:
    """Raise SettingsError if the server cannot listen on one of its ports."""
    ports = {"HTTP": settings.http_port, "gRPC": settings.grpc_port}
    if settings.metrics_endpoint:
        ports["metrics"] = settings.metrics_port
    for (name, port), (other, other_port) in combinations(ports.items(), 2):
        if port == other_port != 0:  # the kernel chooses a port for 0
            raise _cannot_listen(settings.host, port, f"{name} and {other}", "use one port each")
    for name, port in ports.items():
        if not 0 <= port < 2**16:
            raise _cannot_listen(settings.host, port, name, "a port is a number from 0 to 65535")
        try:
            _bind(settings.host, port)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise _cannot_listen(settings.host, port, name, reason) from None


def _bind(host: str, port: int) -> None:
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, _, _, address in addresses:
        try:
            probe = socket.socket(family, kind)
        except OSError:  # the kernel may lack IPv6; asyncio skips the address, too
            continue
        with probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)


def _cannot_listen(host: str, port: int, name: str, reason: str) -> SettingsError:
    return SettingsError(
        f"Cannot listen on {host}:{port} ({name}): {reason}. Choose another address with "
        f"MLSERVER_HOST, MLSERVER_HTTP_PORT, MLSERVER_GRPC_PORT or MLSERVER_METRICS_PORT."
    )


def check_model_settings(root: str) -> None:
    """Raise SettingsError for a model-settings.json that MLServer cannot read or load.

    MLServer logs a traceback and starts without the model (tests/hook/test_start.py).
    """
    pattern = os.path.join(os.path.abspath(root), "**", DEFAULT_MODEL_SETTINGS_FILENAME)
    for path in sorted(glob.glob(pattern, recursive=True)):
        read_model_settings(path)


def end_process(failure: Exception | None) -> NoReturn:
    """End this process and its workers, with status 1 and a closing sentence after a failure."""
    for child in multiprocessing.active_children():
        child.kill()
    cleaning = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    cleaning.start()
    cleaning.join(EXIT_TIMEOUT)
    if failure:
        log_last_words(f"The server stops: {failure}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if failure else 0)
