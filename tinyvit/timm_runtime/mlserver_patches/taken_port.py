"""An end, in one sentence, where a port is taken."""

import errno
import os
from pathlib import Path
from typing import Any

from mlserver import MLModel
from mlserver.metrics import server as metrics_server
from mlserver.parallel.pool import InferencePool
from mlserver.rest import RESTServer, server as rest_server
from mlserver.settings import Settings

from .graceful_stop import end_process
from .replacing import replace

FAULT = (
    "Where the HTTP or metrics port is taken, a server with workers neither ends nor obeys "
    "SIGTERM, and one whose gRPC port is taken loads its models first, or shares it unnoticed."
)
UPSTREAM = "unreported; tests/patches/test_taken_port.py"
AFFECTS = ">=1.7.1,<1.8"

LISTENING = "0A"
"""The state of a socket in /proc/net/tcp."""


def apply() -> None:
    _end_where_uvicorn_exits(rest_server._NoSignalServer, "HTTP")
    _end_where_uvicorn_exits(metrics_server._NoSignalServer, "metrics")
    _check_grpc_before_the_first_load()


def _end_where_uvicorn_exits(owner: Any, use: str) -> None:
    async def startup(self: Any, sockets: Any = None) -> None:
        try:
            await original(self, sockets)
        except SystemExit:
            where = f"{self.config.host}:{self.config.port}"
            end_process(f"it cannot listen on {where} ({use}): is the port taken?")

    original = replace(owner, "startup", startup)


def _check_grpc_before_the_first_load() -> None:
    """Where the models are loaded is where MLServer's settings are at hand."""

    async def add_custom_handlers(self: RESTServer, model: MLModel) -> MLModel:
        _check_grpc(self._settings)
        return await add_original(self, model)

    async def load_model(self: InferencePool, model: MLModel) -> MLModel:
        _check_grpc(self._settings)
        return await load_original(self, model)

    add_original = replace(RESTServer, "add_custom_handlers", add_custom_handlers)
    load_original = replace(InferencePool, "load_model", load_model)


def _check_grpc(settings: Settings) -> None:
    """Ends the process unless it alone listens on its gRPC port; at the server's start only.

    gRPC lets several processes listen on one port and gives each a part of the connections.
    """
    http = _listeners(settings.http_port)
    if http is None or any(ours for _, ours in http):
        return  # there is no /proc, or the start is over
    grpc = _listeners(settings.grpc_port) or []
    mine = [address for address, ours in grpc if ours]
    others = [address for address, ours in grpc if not ours]
    if settings.grpc_port and (not mine or _overlap(mine, others)):
        where = f"{settings.host}:{settings.grpc_port}"
        reason = os.strerror(errno.EADDRINUSE).lower()
        end_process(f"it cannot listen on {where} (gRPC): {reason}.")


def _listeners(port: int) -> list[tuple[str, bool]] | None:
    """Who listens on a port: the address, as the kernel writes it, and whether it is this process;
    None where the kernel does not tell."""
    sockets = _own_sockets()
    found = []
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if not table.exists():
            continue
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            address, _, number = fields[1].partition(":")
            if fields[3] == LISTENING and int(number, 16) == port:
                found.append((address, f"socket:[{fields[9]}]" in sockets))
    return found if sockets else None


def _own_sockets() -> set[str]:
    folder = Path("/proc/self/fd")
    links = folder.iterdir() if folder.exists() else ()
    found = set()
    for link in links:
        try:
            found.add(os.readlink(link))
        except FileNotFoundError:  # the descriptor of this very listing
            continue
    return found


def _overlap(mine: list[str], others: list[str]) -> bool:
    """Whether both hold for some address; one of zeros only stands for all of them."""
    return any(
        one == other or not int(one, 16) or not int(other, 16) for one in mine for other in others
    )
