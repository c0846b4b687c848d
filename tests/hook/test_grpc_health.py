"""gRPC's health service follows readiness; reflection lists the services."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from mlserver_timm.server.lifecycle import MLServer
from tests.support.in_process import loaded
from tests.support.probes import OURS

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SERVICE = "inference.GRPCInferenceService"

Served = tuple[MLServer, grpc.aio.Channel]


@pytest.fixture
async def served(_process_goes_on: None, tmp_path: Path) -> AsyncIterator[Served]:
    """A server with one model, and a connection to it."""
    settings = {"load_models_at_startup": True, "model_repository_root": str(tmp_path)}
    async with (
        loaded(OURS, **settings) as (parts, server),
        grpc.aio.insecure_channel(server.grpc) as channel,
    ):
        await channel.channel_ready()
        yield parts, channel


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_follows_readiness(
    served: Served, service: str, compression: grpc.Compression
) -> None:
    """NOT_SERVING after the unload of the only model."""
    parts, channel = served
    health, request = HealthStub(channel), HealthCheckRequest(service=service)
    watched = health.Watch(request)
    assert (await watched.read()).status == SERVING
    answer = await health.Check(request, compression=compression, timeout=20)
    assert answer.status == SERVING
    await parts._model_repository_handlers.unload("ours")
    assert (await health.Check(request, timeout=20)).status == NOT_SERVING
    assert (await watched.read()).status == NOT_SERVING
    watched.cancel()


async def test_unknown_service(served: Served) -> None:
    """It gets what gRPC's health protocol says."""
    request = HealthCheckRequest(service="s" * 1000)
    parts, channel = served
    with pytest.raises(grpc.RpcError) as error:
        await HealthStub(channel).Check(request, timeout=20)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    assert len(error.value.details()) < 200
    watched = HealthStub(channel).Watch(request)
    assert (await watched.read()).status == HealthCheckResponse.SERVICE_UNKNOWN
    parts._data_plane.stopping = True
    assert await watched.read() is grpc.aio.EOF


async def test_a_watching_client_does_not_delay_a_stop(served: Served) -> None:
    parts, channel = served
    watched = HealthStub(channel).Watch(HealthCheckRequest())
    assert (await watched.read()).status == SERVING
    parts._data_plane.stopping = True
    assert (await watched.read()).status == NOT_SERVING
    assert await watched.read() is grpc.aio.EOF


async def test_reflection_lists_services_and_their_messages(served: Served) -> None:
    _, channel = served
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
