"""MLServer's REST application and gRPC server with this runtime, in the test's own process."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest
from mlserver import MLServer, Settings
from prometheus_client import REGISTRY

import mlserver_timm.server  # noqa: F401  # MLServer then builds this package's servers
from client.local import free_ports
from tests.support.paths import RUNTIME, SAMPLE

TIMEOUT = 180.0
"""Seconds until a request or a load, which may convert a network, counts as lost."""

METRICS = set(REGISTRY._collector_to_names)
"""Metrics of the process itself."""

Result = TypeVar("Result")


def unregister_mlserver_metrics() -> None:
    """Unregister what MLServer registers at each start; this package's metrics are shared."""
    for collector, names in list(REGISTRY._collector_to_names.items()):
        if collector not in METRICS and not names[0].startswith("tinyvit_"):
            REGISTRY.unregister(collector)


class InProcessServer(MLServer):
    """MLServer without signal handlers and without its logging configuration."""

    def _add_signal_handlers(self) -> None:
        pass

    def _configure_logger(self) -> None:
        pass


async def build(folder: Path, grpc_port: int, model: Mapping[str, Any]) -> InProcessServer:
    """Return a server with a folder's model loaded and gRPC running; REST has no port."""
    unregister_mlserver_metrics()
    content = json.loads((folder / "settings.json").read_text())
    ports = {"host": "127.0.0.1", "grpc_port": grpc_port, "metrics_endpoint": None}
    server = InProcessServer(Settings(**content, **ports, model_repository_root=str(folder)))
    (settings,) = await server._model_repository.list()
    settings.parameters.uri = str(SAMPLE)
    await server._model_registry.load(settings.model_copy(update=dict(model)))
    return server


class App:
    """The server, on an event loop in a thread; requests are synchronous.

    `env` are variables during the load, `model` overrides model-settings.json.
    """

    def __init__(self, env: Mapping[str, str], folder: Path = RUNTIME, **model: Any) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="app", daemon=True).start()
        (grpc_port,) = free_ports(1)
        self.grpc = f"127.0.0.1:{grpc_port}"
        with pytest.MonkeyPatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            self._server = self._run(build(folder, grpc_port, model))
        asyncio.run_coroutine_threadsafe(self._server._grpc_server.start(), self._loop)
        transport = httpx2.ASGITransport(self._server._rest_server._app, raise_app_exceptions=False)
        self._client = httpx2.AsyncClient(transport=transport, base_url="http://app", timeout=None)

    def request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Send a request with the options of `requests.request`."""
        options.pop("timeout", None)
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
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT)


@pytest.fixture(scope="session")
def app(cache_dir: Path) -> Iterator[App]:
    """The application with the bundled sample, in this process; do not break it."""
    app = App({"TINYVIT_CACHE_DIR": str(cache_dir)})
    yield app
    app.close()


@pytest.fixture
def make_app(cache_dir: Path) -> Iterator[Callable[..., App]]:
    """Make applications of one test: `make_app(TINYVIT_TIMEOUT="1", max_batch_size=3)`."""
    with ExitStack() as stack:

        def make(**options: Any) -> App:
            env = {name: options.pop(name) for name in list(options) if name.isupper()}
            app = App({"TINYVIT_CACHE_DIR": str(cache_dir), **env}, **options)
            stack.callback(app.close)
            return app

        yield make
