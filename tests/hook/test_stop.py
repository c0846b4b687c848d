"""A stop answers accepted requests and ends the process."""

import asyncio
import signal
import subprocess
from pathlib import Path

import grpc
import pytest

from mlserver_timm.server import lifecycle
from mlserver_timm.server.lifecycle import MLServer
from tests.support.clients import children, until
from tests.support.in_process import Ended, happens, running
from tests.support.probes import (
    OTHER,
    OURS,
    SOON,
    answer,
    in_background,
    message,
    repository,
    stub,
)
from tests.support.servers import Serve

SHORT = {"server/limits.py": ("STOP_TIMEOUT = 12.0", "STOP_TIMEOUT = 1.0")}


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_accepted_requests_are_answered(serve: Serve, tmp_path: Path, sig: signal.Signals) -> None:
    """Over REST and gRPC; a second and a third signal change nothing."""
    server = serve(folder=repository(tmp_path, OURS))
    gates = [tmp_path / "rest", tmp_path / "grpc"]
    over_rest = in_background(lambda: answer(server, f"wait:{gates[0]}"))
    over_grpc = in_background(
        lambda: stub(server).ModelInfer(message(f"wait:{gates[1]}"), timeout=30).outputs[0]
    )
    for gate in gates:
        until(gate.with_name(f"{gate.name}.begun").exists)
    for _ in range(3):
        server.process.send_signal(sig)
    until(lambda: "Shutting down" in server.output())
    for gate in gates:
        gate.touch()
    assert over_rest.result(SOON) == "waited"
    assert over_grpc.result(SOON).contents.bytes_contents == [b"waited"]
    assert server.process.wait(20) == 0
    assert "Traceback" not in server.output()


def test_workers_answer_before_they_are_closed(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, OTHER, workers=2))
    gate = tmp_path / "gate"
    waiting = in_background(lambda: answer(server, f"wait:{gate}", "other"))
    until((tmp_path / "gate.begun").exists)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: "Shutting down" in server.output())
    gate.touch()
    assert waiting.result(SOON) == "waited"
    assert server.process.wait(30) == 0
    until(lambda: not children(server))
    assert not list((tmp_path / "metrics").glob("*.db"))


@pytest.mark.parametrize("name", ["ours", "other"])
def test_request_without_an_end(serve: Serve, tmp_path: Path, name: str) -> None:
    """It is dropped after a timeout; MLServer has no timeout for another model."""
    server = serve(folder=repository(tmp_path, OURS, OTHER, edits=SHORT))
    gate = tmp_path / "gate"
    waiting = in_background(lambda: answer(server, f"wait:{gate}", name))
    until((tmp_path / "gate.begun").exists)
    server.process.send_signal(signal.SIGTERM)
    if name == "other":
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(4)
        gate.touch()
        assert waiting.result(SOON) == "waited"
    else:
        server.process.wait(SOON)
        assert waiting.exception(SOON)
    assert server.process.wait(20) == 0


async def test_stop_happens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLServer calls `stop` several times for each signal."""
    base, stops = lifecycle.MLServer.__mro__[1], []
    stop = base.stop

    async def counted(self: MLServer, sig: int | None = None) -> None:
        stops.append(sig)
        await stop(self, sig)

    async with running(OURS) as (parts, _):
        with monkeypatch.context() as patch:
            patch.setattr(base, "stop", counted)
            with pytest.raises(Ended) as end:
                await parts.stop(signal.SIGTERM, failure=RuntimeError("no such kernel"))
            await parts.stop(signal.SIGTERM)
        assert str(end.value.failure) == "no such kernel"

    assert stops == [signal.SIGTERM]


async def test_calls_are_refused_once_a_stop_has_begun(tmp_path: Path) -> None:
    async with running(OURS) as (parts, server):
        await happens(lambda: parts._grpc_server._server)
        gate = tmp_path / "gate"
        ask = stub(server).ModelInfer
        waiting = asyncio.create_task(asyncio.to_thread(ask, message(f"wait:{gate}"), timeout=30))
        await happens((tmp_path / "gate.begun").exists)
        stopping = asyncio.create_task(parts.stop(signal.SIGTERM))
        await happens(lambda: parts._data_plane.stopping)
        with pytest.raises(grpc.RpcError) as error:
            await asyncio.to_thread(stub(server).ModelInfer, message("echo:x"), timeout=30)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        gate.touch()
        assert (await waiting).outputs[0].contents.bytes_contents == [b"waited"]
        with pytest.raises(Ended):
            await stopping
