"""gRPC's health service follows readiness; reflection lists the services."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from mlserver_timm.server.lifecycle import MLServer
from tests.support.in_process import happens, running
from tests.support.probes import OURS

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SERVICE = "inference.GRPCInferenceService"


def ask(look: Callable[[MLServer, grpc.aio.Channel], Awaitable[None]], root: Path) -> None:
    async def scenario() -> None:
        settings = {"load_models_at_startup": True, "model_repository_root": str(root)}
        async with running(OURS, **settings) as (parts, server):
            await happens(lambda: parts._data_plane.models_loaded.is_set())
            async with grpc.aio.insecure_channel(server.grpc) as channel:
                await channel.channel_ready()
                await look(parts, channel)

    asyncio.run(scenario())


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_follows_readiness(
    service: str, compression: grpc.Compression, tmp_path: Path
) -> None:
    """NOT_SERVING after the unload of the only model."""

    async def look(parts: MLServer, channel: grpc.aio.Channel) -> None:
        health, request = HealthStub(channel), HealthCheckRequest(service=service)
        watched = health.Watch(request)
        assert (await watched.read()).status == SERVING
        answer = await health.Check(request, compression=compression, timeout=20)
        assert answer.status == SERVING
        await parts._model_repository_handlers.unload("ours")
        assert (await health.Check(request, timeout=20)).status == NOT_SERVING
        assert (await watched.read()).status == NOT_SERVING
        watched.cancel()

    ask(look, tmp_path)


def test_unknown_service(tmp_path: Path) -> None:
    """It gets what gRPC's health protocol says."""
    request = HealthCheckRequest(service="s" * 1000)

    async def look(parts: MLServer, channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.RpcError) as error:
            await HealthStub(channel).Check(request, timeout=20)
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        assert len(error.value.details()) < 200
        watched = HealthStub(channel).Watch(request)
        assert (await watched.read()).status == HealthCheckResponse.SERVICE_UNKNOWN
        parts._data_plane.stopping = True
        assert await watched.read() is grpc.aio.EOF

    ask(look, tmp_path)


def test_a_watching_client_does_not_delay_a_stop(tmp_path: Path) -> None:
    async def look(parts: MLServer, channel: grpc.aio.Channel) -> None:
        watched = HealthStub(channel).Watch(HealthCheckRequest())
        assert (await watched.read()).status == SERVING
        parts._data_plane.stopping = True
        assert (await watched.read()).status == NOT_SERVING
        assert await watched.read() is grpc.aio.EOF

    ask(look, tmp_path)


def test_reflection_lists_services_and_their_messages(tmp_path: Path) -> None:
    async def look(parts: MLServer, channel: grpc.aio.Channel) -> None:
        asked = [
            ServerReflectionRequest(list_services=""),
            ServerReflectionRequest(file_containing_symbol=SERVICE),
        ]
        stream = ServerReflectionStub(channel).ServerReflectionInfo(iter(asked), timeout=20)
        listed, described = [answer async for answer in stream]
        names = {service.name for service in listed.list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names
        (file,) = described.file_descriptor_response.file_descriptor_proto
        assert b"ModelInferRequest" in file

    ask(look, tmp_path)
