"""No request goes to a worker that has not loaded its models yet."""

import contextlib
import os
import signal
from pathlib import Path

import requests

from client.local import LocalServer
from tests.support.clients import workers
from tests.support.probes import Model, answer, repository, tell, until
from tests.support.servers import Serve


def without_a_loaded_worker(
    serve: Serve, tmp_path: Path, without: str | None = None
) -> LocalServer:
    """A server whose workers have died one after the other; the new ones wait for `gate`."""
    gate = tmp_path / "gate"
    gate.touch()
    slow = Model(extra={"load_waits_for": str(gate)})
    server = serve(folder=repository(tmp_path, slow, workers=2, without=without))
    gate.unlink()
    for count, pid in enumerate(workers(server), 1):
        os.kill(pid, signal.SIGKILL)
        until(lambda n=count: server.output().count("Starting new worker") == n)
    return server


def test_requests_are_refused_until_one_is_loaded(serve: Serve, tmp_path: Path) -> None:
    server = without_a_loaded_worker(serve, tmp_path)
    refusal = tell(server, "echo:x")
    assert refusal.status_code == 503
    assert refusal.json() == {"error": "No worker process is ready. Try again in a moment."}
    (tmp_path / "gate").touch()
    until(lambda: server.output().count("is now ready") == 2, 30)
    assert [answer(server, "echo:x") for _ in range(4)] == ["x"] * 4


def test_without(serve: Serve, tmp_path: Path) -> None:
    server = without_a_loaded_worker(serve, tmp_path, without="loading_workers")
    with contextlib.suppress(requests.Timeout):  # no answer at all
        assert tell(server, "echo:x", timeout=8).status_code not in (200, 503)
