"""Our models get our middleware and error handlers."""

from pathlib import Path

import pytest
import requests

from tests.support.probes import OTHER, OURS, repository
from tests.support.servers import Serve


def statuses(serve: Serve, folder: Path) -> tuple[int, int]:
    """Of a body that is no JSON, for our model and for another."""
    server = serve(folder=folder)
    ours, other = [
        requests.post(f"{server.url}/v2/models/{name}/infer", data=b"{", timeout=10).status_code
        for name in ("ours", "other")
    ]
    return ours, other


@pytest.mark.parametrize("workers", [0, 1])
def test_our_error_handlers_are_in_place(serve: Serve, tmp_path: Path, workers: int) -> None:
    assert statuses(serve, repository(tmp_path, OTHER, OURS, workers=workers)) == (400, 422)


def test_without(serve: Serve, tmp_path: Path) -> None:
    folder = repository(tmp_path, OTHER, OURS, without="middleware_place")
    assert statuses(serve, folder) == (422, 422)


@pytest.mark.parametrize("path", ["/v2/models/other/", "/v2/health/live/"])
def test_redirections_name_no_host(serve: Serve, tmp_path: Path, path: str) -> None:
    """For a neighbour's clients neither: what a path is relative to is where they have asked."""
    server = serve(folder=repository(tmp_path, OTHER, OURS))
    headers = {"Host": "evil.example"}
    answer = requests.get(server.url + path, headers=headers, allow_redirects=False, timeout=10)
    assert answer.status_code == 307
    assert answer.headers["Location"] == path.rstrip("/")
    assert requests.get(server.url + path, timeout=10).ok
