"""A server that cannot serve its models ends, and its last line says why."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from mlserver.settings import Settings

from client.local import free_ports
from mlserver_timm.errors import SettingsError
from mlserver_timm.server.lifecycle import check_model_settings, check_ports
from tests.support.clients import children, until
from tests.support.in_process import happens, running
from tests.support.probes import OURS, Model, last_line, repository
from tests.support.servers import Serve

PORTS = {"HTTP": "http_port", "gRPC": "grpc_port", "metrics": "metrics_port"}


@contextmanager
def listener(host: str = "127.0.0.1", shared: bool = False) -> Iterator[int]:
    """Yield the port of a listener; `shared` sets SO_REUSEPORT, as gRPC does by default."""
    with socket.socket() as one:
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind((host, 0))
        one.listen()
        yield one.getsockname()[1]


def settings(**changes: Any) -> Settings:
    ports = dict(zip(PORTS.values(), free_ports(3), strict=True))
    return Settings(**{"host": "127.0.0.1", **ports, **changes})


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("use", PORTS)
def test_port_in_use(use: str, shared: bool) -> None:
    with listener(shared=shared) as port:
        message = rf"Cannot listen on 127\.0\.0\.1:{port} \({use}\): address already in use\."
        with pytest.raises(SettingsError, match=message):
            check_ports(settings(**{PORTS[use]: port}))


@pytest.mark.parametrize("uses", [("HTTP", "gRPC"), ("HTTP", "metrics"), ("gRPC", "metrics")])
def test_one_port_for_two_uses(uses: tuple[str, str]) -> None:
    (port,) = free_ports(1)
    message = rf"127\.0\.0\.1:{port} \({uses[0]} and {uses[1]}\): use one port each\."
    with pytest.raises(SettingsError, match=message):
        check_ports(settings(**{PORTS[use]: port for use in uses}))


def test_ports_that_are_free() -> None:
    check_ports(settings())
    check_ports(settings(http_port=0, grpc_port=0))
    (port,) = free_ports(1)
    check_ports(settings(grpc_port=port, metrics_port=port, metrics_endpoint=None))
    with listener("127.0.0.2") as port:
        check_ports(settings(grpc_port=port))


@pytest.mark.parametrize("port", [-1, 70_000])
def test_port_out_of_range(port: int) -> None:
    with pytest.raises(SettingsError, match="a port is a number from 0 to 65535"):
        check_ports(settings(http_port=port))


def test_settings_file_that_is_a_folder(tmp_path: Path) -> None:
    path = repository(tmp_path, OURS) / "second" / "model-settings.json"
    path.mkdir(parents=True)
    with pytest.raises(SettingsError, match=f"{path} cannot be read: Is a directory"):
        check_model_settings(str(tmp_path / "repository"))


@pytest.mark.parametrize("workers", [0, 2])
def test_server_with_a_taken_port_ends(serve: Serve, tmp_path: Path, workers: int) -> None:
    """It ends before it loads a model, which would never finish here."""
    slow = Model(extra={"load_waits_for": str(tmp_path / "never")})
    with listener(shared=True) as port:
        folder = repository(tmp_path, slow, workers=workers)
        server = serve(folder=folder, env={"MLSERVER_GRPC_PORT": str(port)}, ready=False)
        assert server.process.wait(60) == 1
    assert last_line(server).startswith(
        f"The server stops: Cannot listen on 127.0.0.1:{port} (gRPC): address already in use. "
    )
    assert "Traceback" not in server.output()


def test_server_with_an_unreadable_settings_file_ends(serve: Serve, tmp_path: Path) -> None:
    """MLServer would start without this model."""
    folder = repository(tmp_path, OURS, Model("second"))
    (folder / "second" / "model-settings.json").write_text("{")
    server = serve(folder=folder, ready=False)
    assert server.process.wait(60) == 1
    assert last_line(server).startswith("The server stops: ")
    assert "second/model-settings.json cannot be read" in last_line(server)


@pytest.mark.parametrize(("ours", "workers"), [(True, 0), (False, 0), (False, 2)])
def test_server_whose_model_fails_ends(
    serve: Serve, tmp_path: Path, ours: bool, workers: int
) -> None:
    """A model of another runtime has a traceback, an error of this runtime has none."""
    broken = Model("broken", ours=ours, extra={"load_fails": "The weights are bananas."})
    server = serve(folder=repository(tmp_path, OURS, broken, workers=workers), ready=False)
    assert server.process.wait(60) == 1
    assert last_line(server).startswith("The server stops: ")
    assert last_line(server).endswith("The weights are bananas.")
    assert ("Traceback" in server.output()) != ours
    until(lambda: not children(server))


async def test_grpc_refuses_connections_until_models_are_loaded(tmp_path: Path) -> None:
    slow = Model(extra={"load_waits_for": str(tmp_path / "gate")})
    async with running(slow) as (parts, server):
        live = f"{server.url}/v2/health/live"
        assert (await asyncio.to_thread(requests.get, live, timeout=10)).ok
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.grpc_port)
        (tmp_path / "gate").touch()
        await happens(lambda: parts._grpc_server._server)
        (await asyncio.open_connection("127.0.0.1", server.grpc_port))[1].close()
