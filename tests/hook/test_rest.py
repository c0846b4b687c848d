"""Routes, middleware and error handlers apply to models of this runtime, and to no other."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import requests
from mlserver.handlers import custom_handler
from probe import Probe

from mlserver_timm.errors import SettingsError
from tests.support.in_process import build, happens, loaded, settings_of
from tests.support.probes import OTHER, OURS, hang_up_after


async def get(url: str, **options: Any) -> requests.Response:
    """Send a request in a thread: the server runs on this one."""
    return await asyncio.to_thread(requests.get, url, timeout=10, **options)


async def test_error_handlers_apply_to_models_of_this_runtime() -> None:
    async with loaded(OURS, OTHER) as (_, server):
        for name, status in (("ours", 400), ("other", 422)):
            url = f"{server.url}/v2/models/{name}/infer"
            response = await asyncio.to_thread(requests.post, url, data=b"{", timeout=10)
            assert response.status_code == status


@pytest.mark.parametrize("models", [[OTHER], [OTHER, OURS]])
async def test_pages_exist_with_a_model_of_this_runtime(models: list[Any]) -> None:
    async with loaded(*models) as (_, server):
        for path in ("/", "/v2/docs/swagger-ui.css"):
            response = await get(server.url + path)
            assert response.status_code == (200 if OURS in models else 404)


class WithPage(Probe):
    """A model of another runtime with its own page at `/`."""

    @custom_handler(rest_path="/", rest_method="GET")
    async def page(self) -> dict[str, str]:
        return {"page": self.name}


async def test_custom_handlers_of_other_models_override_the_pages() -> None:
    async with loaded(OURS) as (parts, server):
        settings = settings_of(OTHER)
        settings.implementation_ = f"{__name__}.WithPage"
        model = WithPage(settings)
        await parts._rest_server.add_custom_handlers(model)
        assert (await get(server.url)).json() == {"page": "other"}
        await parts._rest_server.delete_custom_handlers(model)
        ours = await get(server.url)
        assert ours.headers["Content-Type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("name", ["ours", "other"])
async def test_request_of_a_client_that_hung_up(name: str, tmp_path: Path) -> None:
    """It is cancelled in a model of this runtime; MLServer finishes it in another model."""
    gate = tmp_path / "gate"
    async with loaded(OURS, OTHER) as (parts, server):
        begun = tmp_path / "gate.begun"
        await asyncio.to_thread(hang_up_after, server, f"wait:{gate}", begun, name)
        state = parts._rest_server._server.server_state
        await happens(lambda: not state.connections)
        if name == "ours":
            await happens((tmp_path / "gate.cancelled").exists)
        else:
            assert state.tasks
            gate.touch()
        await happens(lambda: not state.tasks)
        assert (tmp_path / "gate.cancelled").exists() == (name == "ours")


@pytest.mark.parametrize("model", [OURS, OTHER])
async def test_response_cache_is_refused_for_this_runtime(model: Any) -> None:
    parts, _ = build(cache_enabled=True)
    load = parts._model_registry.load(settings_of(model))
    if model is OTHER:
        await load
        return
    with pytest.raises(SettingsError, match="cache_enabled"):
        await load
