"""Reloads under load: no request fails."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from client.local import LocalServer
from tests.support.background_load import ROUTES, Load, altered, extra, is_ready
from tests.support.clients import assert_sane, children, repository, until
from tests.support.folders import copy_runtime
from tests.support.servers import Serve


def state(server: LocalServer) -> str:
    """Return the state of the only model in the repository's index."""
    (model,) = requests.post(f"{server.url}/v2/repository/index", json={}, timeout=30).json()
    assert model["name"] == "tinyvit"
    return model["state"]


def test_reloads(serve: Serve, tmp_path: Path) -> None:
    """One, three at once, one that fails, and an unload."""
    folder = copy_runtime(tmp_path)
    server = serve(folder=folder)
    good = (folder / "model-settings.json").read_text()
    with Load(server) as load:
        load.until(right=10)
        assert repository(server, "load").status_code == 200
        load.until(right=10)
        threads = thread_count(server)
        with ThreadPoolExecutor() as pool:
            several = list(pool.map(lambda _: repository(server, "load"), range(3)))
        assert [response.status_code for response in several] == [200] * 3
        load.until(right=10)
        until(lambda: thread_count(server) <= threads + 6, 10)  # the old models are gone
        altered(folder, "model-settings.json", extra(presicion="bf16"))
        failed = repository(server, "load")
        assert 400 <= failed.status_code <= 500 and "presicion" in failed.json()["error"]
        assert is_ready(server)
        load.until(right=10)
        (folder / "model-settings.json").write_text(good)
        assert repository(server, "load").status_code == 200
        load.until(right=10)
    assert set(load.counts) == {"right"}, load.counts
    assert_sane(server)

    assert state(server) == "READY"
    assert repository(server, "unload").status_code == 200
    assert state(server) == "UNAVAILABLE"
    assert requests.get(f"{server.url}/v2/models/tinyvit/ready", timeout=10).status_code == 404
    assert requests.get(f"{server.url}/v2/health/live", timeout=10).ok
    for route in ROUTES.values():
        assert route(server).status_code in (404, 503)
    assert repository(server, "unload").status_code == 404
    assert repository(server, "load").status_code == 200
    assert state(server) == "READY" and is_ready(server)
    assert_sane(server)
    assert server.stop() == 0


def thread_count(server: LocalServer) -> int:
    pids = [server.process.pid, *children(server)]
    return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids)
