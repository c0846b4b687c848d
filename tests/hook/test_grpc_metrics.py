"""`grpc_server_handled_total` counts each call once, with the code that its client gets."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from prometheus_client import REGISTRY

from tests.support.in_process import happens
from tests.support.probes import message

Stub = GRPCInferenceServiceStub


def handled(method: str = "ModelInfer") -> Counter[str]:
    """Return the number of calls of a method for each code."""
    (family,) = [each for each in REGISTRY.collect() if each.name == "grpc_server_handled"]
    counts: Counter[str] = Counter()
    for sample in family.samples:
        is_total = sample.name == "grpc_server_handled_total"
        if is_total and sample.labels["grpc_method"] == method:
            counts[sample.labels["grpc_code"]] += int(sample.value)
    return counts


async def outcome(call: Awaitable[Any]) -> str:
    try:
        await call
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


@pytest.mark.parametrize("model", ["ours", "other"])
async def test_each_code_is_counted(grpc_stub: Stub, model: str) -> None:
    commands = ["echo:x", "echo:y", "crash"] + ["refuse:400"] * 25 + ["refuse:404", "refuse:503"]
    calls = [grpc_stub.ModelInfer(message(command, model), timeout=20) for command in commands]
    codes = Counter(await asyncio.gather(*map(outcome, calls)))
    await happens(lambda: handled() == codes)
    assert handled()["INVALID_ARGUMENT"] == 25 and handled()["OK"] == 2


async def test_other_methods_are_counted(grpc_stub: Stub) -> None:
    assert await outcome(grpc_stub.ServerLive(pb.ServerLiveRequest())) == "OK"
    for name in ("ours", "invented"):
        await outcome(grpc_stub.ModelReady(pb.ModelReadyRequest(name=name)))
        await outcome(grpc_stub.ModelMetadata(pb.ModelMetadataRequest(name=name)))
    for method in ("ModelReady", "ModelMetadata"):
        assert handled(method) == {"OK": 1, "NOT_FOUND": 1}
    assert handled("ServerLive") == {"OK": 1}


@pytest.mark.parametrize("model", ["ours", "other"])
async def test_streams_are_counted(grpc_stub: Stub, model: str) -> None:
    for commands in (["echo:a", "echo:b"], ["echo:a", "refuse:400"]):
        stream = grpc_stub.ModelStreamInfer(iter([message(command, model) for command in commands]))
        try:
            async for _ in stream:
                pass
        except grpc.RpcError:
            pass
    method = "ModelStreamInfer"
    await happens(lambda: handled(method) == {"OK": 1, "INVALID_ARGUMENT": 1})
    labels = {"grpc_type": "BIDI_STREAMING", "grpc_method": method}
    labels["grpc_service"] = "inference.GRPCInferenceService"
    for name, count in (("started", 2), ("msg_received", 4), ("msg_sent", 3)):
        assert REGISTRY.get_sample_value(f"grpc_server_{name}_total", labels) == count


@pytest.mark.parametrize("model", ["ours", "other"])
async def test_calls_that_their_client_ends_are_counted(
    grpc_stub: Stub, model: str, tmp_path: Path
) -> None:
    begun = tmp_path / "gate.begun"
    waiting = grpc_stub.ModelInfer(message(f"wait:{tmp_path / 'gate'}", model))
    task = asyncio.ensure_future(outcome(waiting))
    await happens(begun.exists)
    waiting.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await happens(lambda: handled() == {"CANCELLED": 1})
    late = grpc_stub.ModelInfer(message(f"wait:{tmp_path / 'gate'}", model), timeout=0.5)
    assert await outcome(late) == "DEADLINE_EXCEEDED"
    await happens(lambda: handled() == {"CANCELLED": 1, "DEADLINE_EXCEEDED": 1})
