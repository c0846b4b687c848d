"""A request to a worker ends, also where the worker hangs or dies."""

import signal
from pathlib import Path

import pytest
import requests

from client.local import LocalServer
from tests.support.clients import workers
from tests.support.probes import (
    OTHER,
    OURS,
    answer,
    code,
    happens,
    in_background,
    repository,
    tell,
    until,
)
from tests.support.servers import Serve

GRACE = {"unanswered_requests": ("WORKER_GRACE = 5.0", "WORKER_GRACE = 0.5")}
TIMEOUT = {"TINYVIT_TIMEOUT": "1"}


def with_worker(serve: Serve, tmp_path: Path) -> LocalServer:
    folder = repository(tmp_path, OURS, OTHER, workers=1, edits=GRACE)
    return serve(folder=folder, env=TIMEOUT)


def test_hung_worker_is_replaced(serve: Serve, tmp_path: Path) -> None:
    server = with_worker(serve, tmp_path)
    before = workers(server)
    late = tell(server, f"block:{tmp_path / 'never'}")
    assert (late.status_code, late.json()["error"]) == (
        504,
        "The request was not answered within 1 seconds.",
    )
    until(lambda: "is now ready" in server.output(), 30)
    assert answer(server, "echo:x") == "x"
    assert len(workers(server)) == 1 and workers(server) != before


def test_worker_busy_for_another_model_is_left_alone(serve: Serve, tmp_path: Path) -> None:
    """MLServer sets its requests no limit of time."""
    server = with_worker(serve, tmp_path)
    gate = tmp_path / "gate"
    blocking = in_background(lambda: answer(server, f"block:{gate}", "other"))
    until((tmp_path / "gate.begun").exists)
    assert tell(server, "echo:x").status_code == 504
    assert not happens(lambda: "stopped unexpectedly" in server.output(), within=2)
    gate.touch()
    assert blocking.result() == "blocked"
    assert answer(server, "echo:x") == "x"


def test_slow_worker_is_left_alone(serve: Serve, tmp_path: Path) -> None:
    """One that answers others does not hang."""
    server = with_worker(serve, tmp_path)
    waiting = in_background(lambda: tell(server, f"wait:{tmp_path / 'never'}"))
    until((tmp_path / "never.begun").exists)
    assert answer(server, "echo:x") == "x"
    assert waiting.result().status_code == 504
    assert not happens(lambda: "stopped unexpectedly" in server.output(), within=2)


def test_death_is_told(serve: Serve, tmp_path: Path) -> None:
    server = with_worker(serve, tmp_path)
    died = tell(server, "die")
    assert (died.status_code, died.json()["error"]) == (
        503,
        "The worker process on this request has died. Try again.",
    )
    until(lambda: server.output().count("is now ready") == 1, 30)
    assert code(server, "die").name == "UNAVAILABLE"
    until(lambda: server.output().count("is now ready") == 2, 30)
    other = tell(server, "die", "other")
    assert (other.status_code, other.json()["error"]) == (
        500,
        f"Worker process stopped unexpectedly with exit code {signal.SIGKILL.value}.",
    )


def test_without(serve: Serve, tmp_path: Path) -> None:
    folder = repository(tmp_path, OURS, workers=1, without="unanswered_requests")
    server = serve(folder=folder, env=TIMEOUT)
    with pytest.raises(requests.Timeout):
        tell(server, f"block:{tmp_path / 'never'}", timeout=8)
