"""An end, in one sentence, where a port is taken, or two uses of the server's have one."""

import errno
import os
import socket
from itertools import combinations
from pathlib import Path

from mlserver import MLModel
from mlserver.parallel.pool import InferencePool
from mlserver.rest import RESTServer
from mlserver.settings import Settings

from mlserver_timm.server.patches.graceful_stop import end_process
from mlserver_timm.server.patches.replacing import replace

FAULT = (
    "Where the HTTP or metrics port is taken, a server with workers neither ends nor obeys "
    "SIGTERM, and one whose gRPC port is taken loads its models first, or shares it unnoticed; "
    "two ports of its own that are the same end it with tracebacks, after loading has begun."
)
UPSTREAM = "unreported; tests/patches/test_taken_port.py"
AFFECTS = ">=1.7.1,<1.8"

LISTENING = "0A"
"""The state of a socket in /proc/net/tcp."""

MAPPED = "0000000000000000FFFF0000"
"""What comes before an address of IPv4 in an address of IPv6, as /proc/net/tcp6 writes it."""


def apply() -> None:
    """Looks before the first model is loaded, where MLServer's settings are at hand."""

    async def add_custom_handlers(self: RESTServer, model: MLModel) -> MLModel:
        _check(self._settings)
        return await add_original(self, model)

    async def load_model(self: InferencePool, model: MLModel) -> MLModel:
        _check(self._settings)
        return await load_original(self, model)

    add_original = replace(RESTServer, "add_custom_handlers", add_custom_handlers)
    load_original = replace(InferencePool, "load_model", load_model)


def _check(settings: Settings) -> None:
    """Ends the process where it will not have its ports; at the server's start only.

    By then gRPC listens already, and uvicorn does not yet.
    """
    _check_apart(settings)
    http = _listeners(settings.http_port)
    if http is None or any(ours for _, ours in http):
        return  # the kernel does not tell, or the start is over
    _check_free(settings.host, settings.http_port, "HTTP")
    if settings.metrics_endpoint:
        _check_free(settings.host, settings.metrics_port, "metrics")
    if settings.grpc_port and not _listens_alone(settings.grpc_port):
        _end(settings.host, settings.grpc_port, "gRPC", os.strerror(errno.EADDRINUSE))


def _check_apart(settings: Settings) -> None:
    """Ends the process where two of its own uses have one port."""
    uses = {"HTTP": settings.http_port, "gRPC": settings.grpc_port}
    if settings.metrics_endpoint:
        uses["metrics"] = settings.metrics_port
    for (one, port), (other, same) in combinations(uses.items(), 2):
        if port == same != 0:  # 0 stands for any that is free
            _end(settings.host, port, f"{one} and {other}", "each needs a port of its own")


def _check_free(host: str, port: int, use: str) -> None:
    for family, kind, _, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                _end(host, port, use, error.strerror or str(error))


def _end(host: str, port: int, use: str, reason: str) -> None:
    end_process(f"it cannot listen on {host}:{port} ({use}): {reason.lower()}.")


def _listens_alone(port: int) -> bool:
    """gRPC lets several processes listen on one port, and each gets a part of the connections."""
    listeners = _listeners(port) or []
    mine = [address for address, ours in listeners if ours]
    others = [address for address, ours in listeners if not ours]
    return bool(mine) and not _overlap(mine, others)


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
                address = address.removeprefix(MAPPED)
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
