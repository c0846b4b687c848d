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

from client.local import LocalServer
from tests.support.in_process import happens, running
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


def ask(look: Callable[[LocalServer], Any], **settings: Any) -> Any:
    """Return what `look` returns for a server with a model of ours and another one."""

    async def scenario() -> Any:
        async with running(OURS, OTHER, **settings) as (parts, server):
            await happens(lambda: parts._data_plane.models_loaded.is_set())
            outcome = look(server)
            return await outcome if asyncio.iscoroutine(outcome) else outcome

    return asyncio.run(scenario())


def assert_nothing_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    metrics = generate_latest(REGISTRY).decode()
    for invented in ("invented", "nnnn"):
        assert invented not in metrics
    for record in caplog.records:
        assert "n" * 201 not in record.getMessage()


def test_no_grpc_method_keeps_a_name(caplog: pytest.LogCaptureFixture) -> None:
    async def look(server: LocalServer) -> dict[tuple[str, int], tuple[str, str]]:
        outcomes = {}
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            stub = GRPCInferenceServiceStub(channel)
            for method, call in METHODS.items():
                for number, (pair, _, _) in enumerate(CASES):
                    with pytest.raises(grpc.RpcError) as error:
                        await call(stub, *pair)
                    outcomes[method, number] = error.value.code().name, error.value.details()
        return outcomes

    outcomes = ask(look, grpc_max_message_length=8 * 2**20)
    for (method, number), (code, details) in outcomes.items():
        assert code == CASES[number][2], (method, CASES[number][0])
        assert len(details) < 250
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
def test_no_route_keeps_a_name(
    pair: tuple[str, str], status: int, _code: str, caplog: pytest.LogCaptureFixture
) -> None:
    def look(server: LocalServer) -> Any:
        def answers() -> list[tuple[int, int]]:
            answered = [
                requests.request(m, f"{server.url}/v2/{p}", json=request("echo:x"), timeout=20)
                for m, p in paths(*pair)
            ]
            return [(each.status_code, len(each.text)) for each in answered]

        return asyncio.to_thread(answers)

    for answered, size in ask(look):
        assert answered == status
        assert size < 300
    assert_nothing_is_kept(caplog)


def test_known_models_are_still_counted() -> None:
    async def look(server: LocalServer) -> None:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            stub = GRPCInferenceServiceStub(channel)
            for name in ("ours", "other"):
                await stub.ModelInfer(message("echo:x", name), timeout=20)
                with pytest.raises(grpc.RpcError):
                    await stub.ModelInfer(message("refuse:400", name), timeout=20)

    ask(look)
    for name in ("ours", "other"):
        for outcome in ("success", "failure"):
            total = f"model_infer_request_{outcome}_total"
            count = REGISTRY.get_sample_value(total, {"model": name, "version": ""})
            assert count == 1, (name, outcome)
