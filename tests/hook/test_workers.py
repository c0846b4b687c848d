"""`parallel_workers` run other models; a model of this runtime lives in the server's process."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import requests

from client.local import LocalServer
from mlserver_timm.server.data_plane import InferencePoolRegistry
from tests.support.clients import assert_sane, measured, until, workers
from tests.support.folders import copy_runtime
from tests.support.probes import OTHER, OURS, answer, code, repository
from tests.support.servers import Serve


def load(server: LocalServer, name: str, verb: str = "load") -> int:
    url = f"{server.url}/v2/repository/models/{name}/{verb}"
    return requests.post(url, timeout=60).status_code


def test_workers_start_with_the_first_model_that_uses_them(serve: Serve, tmp_path: Path) -> None:
    """Also if that model is loaded later; both survive reloads and the loss of a worker."""
    root = repository(tmp_path, OURS, OTHER, workers=2)
    aside = (root / "other").rename(tmp_path / "other")
    server = serve(folder=root)
    assert workers(server) == []
    assert answer(server, "pid") == str(server.process.pid)
    assert "DEPRECATED" not in server.output()  # MLServer's warning of the model's own setting

    aside.rename(root / "other")
    assert [load(server, name) for name in ("other", "ours")] == [200, 200]
    first = workers(server)
    assert len(first) == 2
    assert int(answer(server, "pid", "other")) in first
    assert answer(server, "pid") == str(server.process.pid)

    os.kill(first[0], signal.SIGKILL)
    until(lambda: server.output().count("is now ready") == 3, 60)
    assert len(workers(server)) == 2 and first[0] not in workers(server)
    assert answer(server, "echo:x", "other") == "x"

    assert load(server, "ours", "unload") == 200
    assert answer(server, "echo:x", "other") == "x"
    assert load(server, "ours") == 200
    assert code(server, "echo:x").name == "OK"
    assert server.stop() == 0


def test_metrics_of_all_processes(serve: Serve, tmp_path: Path) -> None:
    """MLServer's and the runtime's metrics cover models in workers and in the server's process."""
    root = repository(tmp_path, OTHER, workers=1)
    copy_runtime(root)
    server = serve(folder=root)
    assert answer(server, "echo:x", "other") == "x"
    assert_sane(server)
    text = requests.get(server.metrics, timeout=10).text
    for model, count in (("other", 1), ("tinyvit", 2)):
        line = rf'model_infer_request_success_total{{model="{model}".*}} {count}\.0'
        assert re.search(line, text)
    assert measured(server)["tinyvit_decode_seconds_count"] == 2


def test_exit_statuses_of_other_children_are_left_alone() -> None:
    """MLServer waits for any child, and would take the status that `subprocess` needs."""
    died: list[tuple[int, int]] = []

    async def on_worker_stop(pid: int, exit_code: int) -> None:
        died.append((pid, exit_code))

    fake = [SimpleNamespace(pid=1, exitcode=None), SimpleNamespace(pid=2, exitcode=-9)]
    pool = SimpleNamespace(_workers={w.pid: w for w in fake}, on_worker_stop=on_worker_stop)
    registry = SimpleNamespace(_default_pool=pool, _pools={"other": pool})
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"], stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.read() == b""
    asyncio.run(InferencePoolRegistry._handle_worker_stop(registry))  # type: ignore[arg-type]
    assert child.wait(20) == 7
    assert died == [(2, -9), (2, -9)]
