"""Names that a client invents reach neither the metrics nor, beyond a few words, the log."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
import requests
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from prometheus_client import REGISTRY, generate_latest

from tests.support.in_process import calling, loaded
from tests.support.probes import OTHER, OURS, message, request

LONG = "n" * 257
UNKNOWN = [("invented", ""), ("ours", "invented"), ("other", "invented")]
TOO_LONG = [(LONG, ""), ("ours", LONG), ("other", LONG), ("n" * 2**20, "")]
CASES = [(pair, 404, "NOT_FOUND") for pair in UNKNOWN] + [
    (pair, 400, "INVALID_ARGUMENT") for pair in TOO_LONG
]

Method = Callable[[GRPCInferenceServiceStub, str, str], Awaitable[Any]]


def infer_message(name: str, version: str) -> pb.ModelInferRequest:
    asked = message("echo:x", name)
    asked.model_version = version
    return asked


async def stream_infer(stub: GRPCInferenceServiceStub, name: str, version: str) -> None:
    async for _ in stub.ModelStreamInfer(iter([infer_message(name, version)]), timeout=20):
        pass


METHODS: dict[str, Method] = {
    "ModelInfer": lambda stub, name, version: stub.ModelInfer(infer_message(name, version)),
    "ModelStreamInfer": stream_infer,
    "ModelReady": lambda stub, name, version: stub.ModelReady(
        pb.ModelReadyRequest(name=name, version=version)
    ),
    "ModelMetadata": lambda stub, name, version: stub.ModelMetadata(
        pb.ModelMetadataRequest(name=name, version=version)
    ),
    "RepositoryModelLoad": lambda stub, name, version: stub.RepositoryModelLoad(
        pb.RepositoryModelLoadRequest(model_name=version or name)
    ),
    "RepositoryModelUnload": lambda stub, name, version: stub.RepositoryModelUnload(
        pb.RepositoryModelUnloadRequest(model_name=version or name)
    ),
}


def assert_nothing_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    metrics = generate_latest(REGISTRY).decode()
    for invented in ("invented", "nnnn"):
        assert invented not in metrics
    for record in caplog.records:
        assert "n" * 201 not in record.getMessage()


async def test_no_grpc_method_keeps_a_name(caplog: pytest.LogCaptureFixture) -> None:
    async with calling(OURS, OTHER, grpc_max_message_length=8 * 2**20) as stub:
        for method, call in METHODS.items():
            for pair, _, code in CASES:
                with pytest.raises(grpc.RpcError) as error:
                    await call(stub, *pair)
                assert error.value.code().name == code, (method, pair)
                assert len(error.value.details()) < 250
    assert_nothing_is_kept(caplog)
    if "Traceback" in caplog.text:
        assert "RepositoryModel" in caplog.text


def paths(name: str, version: str) -> list[tuple[str, str]]:
    """Return the method and path of each kind of request that names a model."""
    model = f"models/{name}" + (f"/versions/{version}" if version else "")
    verbs = ("infer", "generate", "infer_stream", "generate_stream", "classify")
    return [
        *[("POST", f"{model}/{verb}") for verb in verbs],
        *[("GET", f"{model}{path}") for path in ("", "/ready", "/docs", "/docs/dataplane.json")],
        *[("POST", f"repository/models/{version or name}/{verb}") for verb in ("load", "unload")],
    ]


@pytest.mark.parametrize(("pair", "status", "_code"), CASES[:-1])
async def test_no_route_keeps_a_name(
    pair: tuple[str, str], status: int, _code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with loaded(OURS, OTHER) as (_, server):
        for method, path in paths(*pair):
            url, body = f"{server.url}/v2/{path}", request("echo:x")
            answer = await asyncio.to_thread(requests.request, method, url, json=body, timeout=20)
            assert answer.status_code == status
            assert len(answer.text) < 300
    assert_nothing_is_kept(caplog)


async def test_known_models_are_still_counted(grpc_stub: GRPCInferenceServiceStub) -> None:
    for name in ("ours", "other"):
        await grpc_stub.ModelInfer(message("echo:x", name), timeout=20)
        with pytest.raises(grpc.RpcError):
            await grpc_stub.ModelInfer(message("refuse:400", name), timeout=20)
        for outcome in ("success", "failure"):
            total = f"model_infer_request_{outcome}_total"
            count = REGISTRY.get_sample_value(total, {"model": name, "version": ""})
            assert count == 1, (name, outcome)
