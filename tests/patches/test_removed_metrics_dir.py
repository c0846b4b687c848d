"""Metrics are there again after somebody has removed their folder."""

import shutil
from pathlib import Path

import requests

from client.local import LocalServer
from tests.support.probes import OURS, answer, repository
from tests.support.servers import Serve


def after_removal(serve: Serve, tmp_path: Path, without: str | None = None) -> LocalServer:
    server = serve(folder=repository(tmp_path, OURS, workers=1, without=without))
    assert answer(server, "echo:x") == "x"
    assert "model_infer_request_success" in requests.get(server.metrics, timeout=10).text
    shutil.rmtree(tmp_path / "metrics")
    return server


def test_metrics_are_answered(serve: Serve, tmp_path: Path) -> None:
    server = after_removal(serve, tmp_path)
    for _ in range(3):
        assert requests.get(server.metrics, timeout=10).status_code == 200
    assert server.output().count("was removed") == 1
    assert (tmp_path / "metrics").is_dir()


def test_without(serve: Serve, tmp_path: Path) -> None:
    server = after_removal(serve, tmp_path, without="removed_metrics_dir")
    assert requests.get(server.metrics, timeout=10).status_code == 500
