"""Routes, middleware and error handlers apply to models of this runtime, and to no other."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from mlserver.handlers import custom_handler
from probe import Probe

from client.local import LocalServer
from mlserver_timm.errors import SettingsError
from mlserver_timm.server.lifecycle import MLServer
from tests.support.in_process import build, happens, running, settings_of
from tests.support.probes import OTHER, OURS, hang_up_after


def ask(*models: Any, look: Callable[[LocalServer], Any]) -> Any:
    """Return what `look` returns for a server with these models."""

    async def scenario() -> Any:
        async with running(*models) as (parts, server):
            await happens(lambda: parts._data_plane.models_loaded.is_set())
            return await asyncio.to_thread(look, server)

    return asyncio.run(scenario())


def test_error_handlers_apply_to_models_of_this_runtime() -> None:
    def statuses(server: LocalServer) -> list[int]:
        urls = [f"{server.url}/v2/models/{name}/infer" for name in ("ours", "other")]
        return [requests.post(url, data=b"{", timeout=10).status_code for url in urls]

    assert ask(OURS, OTHER, look=statuses) == [400, 422]


@pytest.mark.parametrize("models", [[OTHER], [OTHER, OURS]])
def test_pages_exist_with_a_model_of_this_runtime(models: list[Any]) -> None:
    def statuses(server: LocalServer) -> list[int]:
        paths = ("/", "/v2/docs/swagger-ui.css")
        return [requests.get(server.url + path, timeout=10).status_code for path in paths]

    assert ask(*models, look=statuses) == ([200, 200] if OURS in models else [404, 404])


@pytest.mark.parametrize("path", ["/v2/models/other/", "/v2/health/live/"])
def test_redirects_do_not_name_the_host(path: str) -> None:
    def location(server: LocalServer) -> str:
        headers = {"Host": "evil.example"}
        url = server.url + path
        answer = requests.get(url, headers=headers, allow_redirects=False, timeout=10)
        assert answer.status_code == 307 and requests.get(url, timeout=10).ok
        return answer.headers["Location"]

    assert ask(OURS, OTHER, look=location) == path.rstrip("/")


class WithPage(Probe):
    """A model of another runtime with its own page at `/`."""

    @custom_handler(rest_path="/", rest_method="GET")
    async def page(self) -> dict[str, str]:
        return {"page": self.name}


def test_custom_handlers_of_other_models_override_the_pages() -> None:
    async def scenario() -> Any:
        async with running(OURS) as (parts, server):
            await happens(lambda: parts._data_plane.models_loaded.is_set())
            settings = settings_of(OTHER)
            settings.implementation_ = f"{__name__}.WithPage"
            model = WithPage(settings)
            await parts._rest_server.add_custom_handlers(model)
            page = await asyncio.to_thread(requests.get, server.url, timeout=10)
            await parts._rest_server.delete_custom_handlers(model)
            ours = await asyncio.to_thread(requests.get, server.url, timeout=10)
            return page.json(), ours.headers["Content-Type"]

    assert asyncio.run(scenario()) == ({"page": "other"}, "text/html; charset=utf-8")


@pytest.mark.parametrize("name", ["ours", "other"])
def test_request_of_a_client_that_hung_up(name: str, tmp_path: Path) -> None:
    """It is cancelled in a model of this runtime; MLServer finishes it in another model."""
    gate = tmp_path / "gate"

    async def scenario() -> None:
        async with running(OURS, OTHER) as (parts, server):
            await happens(lambda: parts._data_plane.models_loaded.is_set())
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

    asyncio.run(scenario())


@pytest.mark.parametrize("model", [OURS, OTHER])
def test_response_cache_is_refused_for_this_runtime(model: Any) -> None:
    async def load() -> MLServer:
        parts, _ = build(cache_enabled=True)
        await parts._model_registry.load(settings_of(model))
        return parts

    if model is OTHER:
        asyncio.run(load())
        return
    with pytest.raises(SettingsError, match="cache_enabled"):
        asyncio.run(load())
