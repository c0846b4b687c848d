"""Readiness of models, and requests while they load."""

import asyncio
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest
import requests

from client.local import LocalServer
from tests.support.in_process import happens, running, settings_of
from tests.support.probes import OTHER, OURS, Model, answer, code, send


async def status(server: LocalServer, path: str, method: str = "GET") -> int:
    url = f"{server.url}/v2/{path}"
    return (await asyncio.to_thread(requests.request, method, url, timeout=30)).status_code


@pytest.mark.parametrize("late", ["ours", "other"])
async def test_server_is_ready_once_every_start_up_model_is(tmp_path: Path, late: str) -> None:
    """503 while a model of this runtime loads, MLServer's 400 while another model loads."""
    models = [
        Model(name, name == "ours", {"load_waits_for": str(tmp_path / name)})
        for name in ("ours", "other")
    ]
    first, expected = ("other", 503) if late == "ours" else ("ours", 400)
    async with running(*models) as (parts, server):
        (tmp_path / first).touch()
        await happens(lambda: parts._model_registry._models[first].default.ready)
        assert await status(server, f"models/{first}/ready") == 200
        assert await status(server, f"models/{late}/ready") == expected
        assert await status(server, "health/ready") == expected
        refused = await asyncio.to_thread(send, server, "echo:x", late)
        assert refused.status_code == expected
        (tmp_path / late).touch()
        await happens(lambda: parts._data_plane.models_loaded.is_set())
        assert await status(server, "health/ready") == 200


async def test_server_without_its_start_up_model_is_not_ready(tmp_path: Path) -> None:
    """A failed model is removed while it still unloads."""
    notes = tmp_path / "notes"
    extra = {"load_fails": "No weights.", "unload_waits_for": str(tmp_path / "never")}
    async with running(Model(extra={**extra, "notes": str(notes)})) as (_, server):
        await happens(lambda: "unload" in notes.read_text())
        assert await status(server, "health/ready") == 400


async def test_request_to_a_loading_model_is_unavailable_over_grpc(tmp_path: Path) -> None:
    """During a load through the repository API, the port is open."""
    async with running() as (parts, server):
        slow = settings_of(Model(extra={"load_waits_for": str(tmp_path / "gate")}))
        loading = asyncio.create_task(parts._model_registry.load(slow))
        await happens(lambda: parts._data_plane.timm_models.served("ours"))
        assert (await asyncio.to_thread(code, server, "echo:x")).name == "UNAVAILABLE"
        (tmp_path / "gate").touch()
        await loading
        assert (await asyncio.to_thread(code, server, "echo:x")).name == "OK"


async def test_not_ready_once_a_stop_has_begun() -> None:
    async with running(OURS) as (parts, _):
        plane = parts._data_plane
        assert await plane.ready() and await plane.model_ready("ours")
        plane.stopping = True
        assert not await plane.ready() and not await plane.model_ready("ours")


async def test_model_that_cannot_answer_is_not_ready() -> None:
    async with running(OURS) as (parts, server):
        model = parts._data_plane.timm_models.served("ours")
        assert model
        model.__dict__["pipeline"] = SimpleNamespace(is_broken=lambda: True)
        assert await status(server, "models/ours/ready") == 503
        assert await status(server, "health/ready") == 503


async def test_repository_api_leaves_a_server_ready(tmp_path: Path, monkeypatch) -> None:
    """Also a server that started without models, and after a failed load."""
    async with running() as (parts, server):

        async def find(name: str) -> list[object]:
            fails = {"load_fails": "No weights."} if name == "broken" else {}
            return [settings_of(Model(name, name != "other", fails))]

        monkeypatch.setattr(parts._model_repository, "find", find)
        assert await status(server, "health/ready") == 200
        for name, expected in (("other", 200), ("ours", 200), ("broken", 500)):
            load = f"repository/models/{name}/load"
            assert await status(server, load, "POST") == expected
            assert await status(server, "health/ready") == 200
        assert await asyncio.to_thread(answer, server, "echo:x") == "x"


async def test_concurrent_loads_leave_one_model(tmp_path: Path, monkeypatch) -> None:
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    slow = Model(extra={"notes": str(notes), "load_waits_for": str(gate)})
    async with running(OTHER) as (parts, _):
        handlers = parts._model_repository_handlers
        find = AsyncMock(return_value=[settings_of(slow)])
        monkeypatch.setattr(parts._model_repository, "find", find)
        loads = [asyncio.create_task(handlers.load("ours")) for _ in range(3)]
        await happens(notes.exists)
        gate.touch()
        assert await asyncio.gather(*loads) == [True] * 3
        assert not handlers._locks

    loaded: Counter[str] = Counter()
    for line in notes.read_text().splitlines():
        what, number, _ = line.split()
        loaded[number] += 1 if what == "load" else -1
    assert sorted(loaded.values()) == [0, 0, 1]


@pytest.mark.parametrize("work", ["load", "unload"])
async def test_a_cancelled_call_of_the_repository_api_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    """A gRPC client's deadline cancels it. MLServer would keep a model that is loaded or unloaded
    in part."""
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    waiting = Model(extra={"notes": str(notes), f"{work}_waits_for": str(gate)})
    async with running(*([waiting] if work == "unload" else [])) as (parts, _):
        handlers = parts._model_repository_handlers
        find = AsyncMock(return_value=[settings_of(waiting)])
        monkeypatch.setattr(parts._model_repository, "find", find)
        call = asyncio.create_task(getattr(handlers, work)("ours"))
        await happens(lambda: notes.exists() and work in notes.read_text())
        call.cancel()
        await asyncio.wait([call])
        gate.touch()
        await happens(lambda: not handlers._tasks)
        assert call.cancelled()
        served = parts._data_plane.timm_models.served("ours")
        assert (served is not None and served.ready) == (work == "load")


async def test_the_repository_api_waits_for_a_start_up_load(tmp_path: Path) -> None:
    """An unload in between would leave a model that cannot be unloaded."""
    slow = Model(extra={"load_waits_for": str(tmp_path / "gate")})
    async with running(slow) as (parts, _):
        await happens(lambda: parts._data_plane.timm_models.served("ours"))
        handlers = parts._model_repository_handlers
        unload = asyncio.create_task(handlers.unload("ours"))
        await happens(lambda: len(handlers._tasks) == 2)
        assert parts._data_plane.timm_models.served("ours"), "it was unloaded while it loads"
        (tmp_path / "gate").touch()
        assert await unload
        assert not parts._data_plane.timm_models.served("ours")
        assert not handlers._tasks
