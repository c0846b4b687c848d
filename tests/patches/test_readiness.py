"""Ready means that every model that was asked for is served."""

import asyncio
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.registry import MultiModelRegistry

from client.local import LocalServer
from mlserver_timm.server.patches import readiness
from tests.support.clients import workers
from tests.support.probes import (
    OTHER,
    OURS,
    Model,
    answer,
    is_ready,
    repository,
    stub,
    until,
)
from tests.support.servers import Serve


def failing(serve: Serve, tmp_path: Path, without: str | None = None) -> LocalServer:
    """A server whose only model has failed to load, and takes long to clean up after itself."""
    extra = {
        "load_waits_for": str(tmp_path / "load"),
        "load_fails": "No weights.",
        "unload_waits_for": str(tmp_path / "never"),
        "notes": str(tmp_path / "notes"),
    }
    server = serve(folder=repository(tmp_path, Model(extra=extra), without=without), ready=False)
    until(lambda: server.output().count("Uvicorn running") == 2, 60)
    assert not is_ready(server)
    (tmp_path / "load").touch()
    until(lambda: "unload" in (tmp_path / "notes").read_text())
    return server


def test_not_ready_after_a_failed_load(serve: Serve, tmp_path: Path) -> None:
    server = failing(serve, tmp_path)
    assert not is_ready(server)
    assert not stub(server).ServerReady(pb.ServerReadyRequest()).ready


def test_without(serve: Serve, tmp_path: Path) -> None:
    assert is_ready(failing(serve, tmp_path, without="readiness"))


def test_not_ready_once_a_stop_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the signal on; a moment later uvicorn takes no connection any more."""
    model = SimpleNamespace(ready=True)
    plane = SimpleNamespace(_model_registry=MultiModelRegistry())
    assert asyncio.run(readiness._ready(plane))
    monkeypatch.setattr(readiness, "is_stopping", lambda: True)
    assert not asyncio.run(readiness._ready(plane))
    assert not readiness._serves(model)


def status(server: LocalServer, path: str) -> int:
    return requests.get(f"{server.url}/v2/{path}", timeout=10).status_code


@pytest.mark.parametrize("late", ["ours", "other"])
def test_whose_fault_it_is(serve: Serve, tmp_path: Path, late: str) -> None:
    """503 where a model of this runtime is not ready, MLServer's 400 where another is."""
    models = [
        Model(name, name == "ours", {"load_waits_for": str(tmp_path / name)})
        for name in ("ours", "other")
    ]
    for name in {"ours", "other"} - {late}:
        (tmp_path / name).touch()
    server = serve(folder=repository(tmp_path, *models), ready=False)
    until(lambda: server.output().count("Uvicorn running") == 2, 60)
    until(lambda: f"Loaded model '{'other' if late == 'ours' else 'ours'}'" in server.output(), 60)
    expected = 503 if late == "ours" else 400
    assert status(server, f"models/{late}/ready") == status(server, "health/ready") == expected
    (tmp_path / late).touch()
    server.wait()
    assert status(server, "models/ours/ready") == status(server, "models/other/ready") == 200


def load(server: LocalServer, name: str) -> int:
    url = f"{server.url}/v2/repository/models/{name}/load"
    return requests.post(url, timeout=30).status_code


def test_empty_server_is_ready(serve: Serve, tmp_path: Path) -> None:
    """Started for the repository API; a load that fails there leaves it ready, too."""
    broken = Model("broken", extra={"load_fails": "No weights."})
    folder = repository(tmp_path, OURS, OTHER, broken, load_models_at_startup=False)
    server = serve(folder=folder)
    for name, status in (("other", 200), ("ours", 200), ("broken", 500)):
        assert load(server, name) == status
        assert is_ready(server)
    assert answer(server, "echo:x") == "x"


def test_not_ready_without_a_worker(serve: Serve, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    slow = Model(extra={"load_waits_for": str(gate)})
    server = serve(folder=repository(tmp_path, slow, OTHER, workers=2))
    gate.unlink()
    first, second = workers(server)
    os.kill(first, signal.SIGKILL)
    until(lambda: "stopped unexpectedly" in server.output())
    assert is_ready(server)
    os.kill(second, signal.SIGKILL)
    until(lambda: not is_ready(server))
    assert status(server, "models/ours/ready") == status(server, "health/ready") == 503
    assert status(server, "models/other/ready") == 400
    gate.touch()
    until(lambda: is_ready(server), 30)
