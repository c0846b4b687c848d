"""The hook's server in the test's own process and event loop, with probes for models."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from mlserver.settings import ModelParameters, ModelSettings, Settings

from client.local import LocalServer, free_ports
from mlserver_timm.server.lifecycle import MLServer
from tests.support.app import unregister_mlserver_metrics
from tests.support.probes import MODELS, Model

sys.path.insert(0, str(MODELS))


class Ended(Exception):
    """Raised where the process would end; `failure` is what it would print."""

    def __init__(self, failure: Exception | None) -> None:
        super().__init__(failure)
        self.failure = failure


def settings_of(model: Model) -> ModelSettings:
    """Return the settings of a probe."""
    implementation = "ours.Ours" if model.ours else "probe.Probe"
    settings = ModelSettings(name=model.name, implementation=implementation)
    settings.parameters = ModelParameters(extra=dict(model.extra))
    return settings


def build(**settings: Any) -> tuple[MLServer, LocalServer]:
    """Return a server that has not started, and its address; needs a running event loop."""
    unregister_mlserver_metrics()
    http, grpc, metrics = free_ports(3)
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    usual = {"host": "127.0.0.1", "parallel_workers": 0, "load_models_at_startup": False}
    server = MLServer(Settings(**{**ports, **usual, **settings}))
    return server, LocalServer(None, http, grpc, metrics)  # type: ignore[arg-type]


@asynccontextmanager
async def running(*models: Model, **settings: Any) -> AsyncIterator[tuple[MLServer, LocalServer]]:
    """Yield a server whose HTTP port is open, while `models` may still be loading."""
    server, address = build(**settings)
    started = asyncio.create_task(server.start([settings_of(model) for model in models]))
    try:
        await happens(lambda: getattr(server._rest_server, "_server", None), started)
        await happens(lambda: server._rest_server._server.started, started)
        yield server, address
    finally:
        server._data_plane.stopping = False
        starting = not server._data_plane.models_loaded.is_set()
        with suppress(Ended):
            await server.stop()
        if starting:
            started.cancel()
        await asyncio.gather(started, return_exceptions=True)


@asynccontextmanager
async def loaded(*models: Model, **settings: Any) -> AsyncIterator[tuple[MLServer, LocalServer]]:
    """Yield a server that has loaded its models."""
    async with running(*models, **settings) as (server, address):
        await happens(lambda: server._data_plane.models_loaded.is_set())
        yield server, address


@asynccontextmanager
async def calling(*models: Model, **settings: Any) -> AsyncIterator[GRPCInferenceServiceStub]:
    """Yield a gRPC client of a server that has loaded its models."""
    async with (
        loaded(*models, **settings) as (_, address),
        grpc.aio.insecure_channel(address.grpc) as channel,
    ):
        await channel.channel_ready()
        yield GRPCInferenceServiceStub(channel)


async def happens(condition: Callable[[], Any], task: "asyncio.Task[None] | None" = None) -> None:
    """Return once the condition holds; fails after 10 s, or if the task ends before."""

    async def wait() -> None:
        while not condition():
            assert not (task and task.done()), task
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), 10)
