"""MLServer's REST application and gRPC server with this runtime, in the test's own process."""

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest
from mlserver import MLServer, Settings

from client.local import free_ports
from mlserver_timm.server import patches
from tests.support.paths import ROOT, SAMPLE

REQUEST_TIMEOUT = 60.0
"""Seconds until a request counts as lost."""

Result = TypeVar("Result")


class InProcessServer(MLServer):
    """MLServer without signal handlers and without its logging configuration."""

    def _add_signal_handlers(self) -> None:
        pass

    def _configure_logger(self) -> None:
        pass


async def build(folder: Path, grpc_port: int) -> InProcessServer:
    """Return a server with the models of a folder loaded and gRPC running; REST has no port."""
    patches._applied |= {"graceful_stop", "signals_captured", "taken_port"}  # a process' own
    content = json.loads((folder / "settings.json").read_text())
    ports = {"host": "127.0.0.1", "grpc_port": grpc_port, "metrics_endpoint": None}
    server = InProcessServer(Settings(**content, **ports, model_repository_root=str(folder)))
    for model in await server._model_repository.list():
        model.parameters.uri = str(SAMPLE)
        await server._model_registry.load(model)
    return server


class App:
    """The server, on an event loop in a thread; requests are synchronous."""

    def __init__(self, folder: Path = ROOT / "tinyvit") -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="app", daemon=True).start()
        (grpc_port,) = free_ports(1)
        self.grpc = f"127.0.0.1:{grpc_port}"
        self._server = self._run(build(folder, grpc_port))
        asyncio.run_coroutine_threadsafe(self._server._grpc_server.start(), self._loop)
        transport = httpx2.ASGITransport(self._server._rest_server._app, raise_app_exceptions=False)
        self._client = httpx2.AsyncClient(transport=transport, base_url="http://app")

    def request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Send a request with the options of `requests.request`."""
        if isinstance(options.get("data"), bytes):
            options["content"] = options.pop("data")
        return self._run(self._client.request(method, path, **options))

    def close(self) -> None:
        """Stop gRPC, unload the models and end the event loop."""
        self._run(self._server._grpc_server.stop())
        for name in list(self._server._model_registry._models):
            self._run(self._server._model_registry.unload(name))
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(REQUEST_TIMEOUT)


@pytest.fixture(scope="session")
def app(cache_dir: Path) -> Iterator[App]:
    """The application with the bundled sample, in this process; do not break it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYVIT_CACHE_DIR", str(cache_dir))
        app = App()
    yield app
    app.close()
