"""A taken port ends the server at once, with a sentence that names it."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.local import free_ports
from tests.support.clients import children
from tests.support.probes import OURS, Model, ends, last_line, repository, until
from tests.support.servers import Serve

PORTS = {
    "HTTP": "MLSERVER_HTTP_PORT",
    "gRPC": "MLSERVER_GRPC_PORT",
    "metrics": "MLSERVER_METRICS_PORT",
}


@contextmanager
def listener(shared: bool = False) -> Iterator[int]:
    """A port on which somebody else listens; `shared`, as gRPC does."""
    with socket.socket() as one:
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one.getsockname()[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("use", [*PORTS, "gRPC, shared"])
def test_server_ends(serve: Serve, tmp_path: Path, use: str, workers: int) -> None:
    never = tmp_path / "never"
    slow = Model(extra={"load_waits_for": str(never)})  # it ends before this model is loaded
    with listener(shared="shared" in use) as port:
        use = use.split(",", maxsplit=1)[0]
        server = serve(
            folder=repository(tmp_path, slow, workers=workers),
            env={PORTS[use]: str(port)},
            ready=False,
        )
        assert server.process.wait(20) == 1
    assert last_line(server).startswith(f"The server stops: it cannot listen on 127.0.0.1:{port}")
    assert use in last_line(server)
    assert server.output().count("The server stops") == 1
    until(lambda: not children(server))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("uses", [("HTTP", "gRPC"), ("HTTP", "metrics"), ("gRPC", "metrics")])
def test_two_uses_of_one_port(
    serve: Serve, tmp_path: Path, uses: tuple[str, str], workers: int
) -> None:
    never = tmp_path / "never"
    slow = Model(extra={"load_waits_for": str(never)})  # it ends before this model is loaded
    (port,) = free_ports(1)
    server = serve(
        folder=repository(tmp_path, slow, workers=workers),
        env={PORTS[use]: str(port) for use in uses},
        ready=False,
    )
    assert server.process.wait(20) == 1
    assert last_line(server) == (
        f"The server stops: it cannot listen on 127.0.0.1:{port} ({uses[0]} and {uses[1]}): "
        f"each needs a port of its own."
    )
    assert "Traceback" not in server.output()
    until(lambda: not children(server))


def test_metrics_that_are_off_need_no_port(serve: Serve, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    folder = repository(tmp_path, OURS, metrics_endpoint=None)
    server = serve(folder=folder, env={PORTS["gRPC"]: str(port), PORTS["metrics"]: str(port)})
    assert server.stop() == 0


def test_same_port_elsewhere_is_free(serve: Serve, tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.2", 0))
        one.listen()
        port = one.getsockname()[1]
        server = serve(folder=repository(tmp_path, OURS), env={PORTS["gRPC"]: str(port)})
        assert server.stop() == 0


def test_without(serve: Serve, tmp_path: Path) -> None:
    """It neither ends nor obeys; or, as the moment has it, ends without a word."""
    with listener() as port:
        server = serve(
            folder=repository(tmp_path, OURS, workers=2, without="taken_port"),
            env={PORTS["HTTP"]: str(port)},
            ready=False,
        )
        until(lambda: "address already in use" in server.output(), 20)
        if not ends(server, within=5):
            os.killpg(server.process.pid, signal.SIGKILL)
        assert "The server stops" not in server.output()
