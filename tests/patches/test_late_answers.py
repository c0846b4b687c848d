"""The answer to a request that was given up disturbs nobody."""

from pathlib import Path

import grpc
import pytest

from client.local import LocalServer
from tests.support.probes import OTHER, OURS, answer, message, repository, stub, until
from tests.support.servers import Serve

CRASHED = "Response processing loop crashed"


def given_up(serve: Serve, tmp_path: Path, without: str | None = None) -> LocalServer:
    """A server after a gRPC client of somebody else's model has gone before its answer came."""
    server = serve(folder=repository(tmp_path, OURS, OTHER, workers=1, without=without))
    gate = tmp_path / "gate"
    call = stub(server).ModelInfer.future(message(f"wait:{gate}", "other"))
    until((tmp_path / "gate.begun").exists)
    call.cancel()
    with pytest.raises(grpc.FutureCancelledError):
        call.result()
    assert answer(server, "echo:x", "other") == "x"  # by now the server knows
    gate.touch()
    assert answer(server, "echo:y", "other") == "y"
    return server


def test_late_answer_is_passed_over(serve: Serve, tmp_path: Path) -> None:
    assert CRASHED not in given_up(serve, tmp_path).output()


def test_without(serve: Serve, tmp_path: Path) -> None:
    server = given_up(serve, tmp_path, without="late_answers")
    until(lambda: CRASHED in server.output())
