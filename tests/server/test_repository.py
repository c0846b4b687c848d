"""MLServer can do with the model what it can: workers, load, unload, index."""

import requests

from clients import assert_sane, workers
from conftest import Serve
from local import LocalServer


def test_worker_starts(worker_server: LocalServer) -> None:
    """What a newer uvloop prevents; the worker answers, and is no other than at the start."""
    (worker,) = workers(worker_server)
    assert_sane(worker_server)
    assert workers(worker_server) == [worker]


def test_no_worker_without_the_setting(server: LocalServer) -> None:
    assert workers(server) == []


def index(server: LocalServer) -> dict[str, str]:
    url = f"{server.url}/v2/repository/index"
    models = requests.post(url, json={}, timeout=30).json()
    return {model["name"]: model["state"] for model in models}


def repository(server: LocalServer, what: str) -> int:
    url = f"{server.url}/v2/repository/models/tinyvit/{what}"
    return requests.post(url, timeout=120).status_code


def test_reload_and_unload(serve: Serve) -> None:
    server = serve()
    assert index(server) == {"tinyvit": "READY"}
    assert repository(server, "load") == 200
    assert_sane(server)
    assert repository(server, "unload") == 200
    url = f"{server.url}/v2/models/tinyvit"
    assert requests.get(f"{url}/ready", timeout=10).status_code == 404
    assert requests.post(f"{url}/infer", json={"inputs": []}, timeout=10).status_code == 404
    assert requests.get(f"{server.url}/v2/health/live", timeout=10).ok
    assert index(server) == {"tinyvit": "UNAVAILABLE"}
    assert repository(server, "load") == 200
    assert index(server) == {"tinyvit": "READY"}
    assert_sane(server)
