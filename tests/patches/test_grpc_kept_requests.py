"""What was refused over gRPC does not stay in memory until garbage is collected."""

from pathlib import Path

import grpc
import pytest

from client.local import LocalServer
from tests.support.clients import resident
from tests.support.probes import OURS, message, repository, stub, until
from tests.support.resource_monitor import MEGABYTE
from tests.support.servers import Serve

SIZE = 30 * MEGABYTE
TIMES = 6
LIMIT = {"grpc_max_message_length": 64 * MEGABYTE}


def refuse(server: LocalServer, size: int) -> None:
    """The probe refuses a request of about so many bytes."""
    with pytest.raises(grpc.RpcError) as refusal:
        stub(server).ModelInfer(message("refuse:400" + " " * size), timeout=60)
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_refused_requests_are_let_go_of(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, **LIMIT))
    refuse(server, 1)
    before = resident(server)
    for _ in range(TIMES):
        refuse(server, SIZE)
    until(lambda: resident(server) - before < 2 * SIZE)


def test_without(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, without="grpc_kept_requests", **LIMIT))
    refuse(server, 1)
    before = resident(server)
    for _ in range(TIMES):
        refuse(server, SIZE)
    assert resident(server) - before > 3 * SIZE
