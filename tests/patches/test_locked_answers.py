"""A worker that is killed in the middle of an answer does not silence the other one."""

from pathlib import Path

import pytest
import requests

from client.local import LocalServer
from tests.support.probes import OTHER, OURS, answer, in_background, repository, tell, until
from tests.support.servers import Serve


def killed_answering(serve: Serve, tmp_path: Path, without: str | None = None) -> LocalServer:
    server = serve(folder=repository(tmp_path, OURS, OTHER, workers=2, without=without))
    assert answer(server, "echo:x") == "x"
    in_background(lambda: tell(server, "die_answering"))
    until(lambda: "stopped unexpectedly" in server.output())
    return server


def test_others_are_answered(serve: Serve, tmp_path: Path) -> None:
    server = killed_answering(serve, tmp_path)
    assert answer(server, "echo:x", timeout=20) == "x"
    until(lambda: "is now ready" in server.output(), 30)
    assert [answer(server, "echo:x", model) for model in ("ours", "other") * 3] == ["x"] * 6


def test_without(serve: Serve, tmp_path: Path) -> None:
    server = killed_answering(serve, tmp_path, without="locked_answers")
    with pytest.raises(requests.Timeout):
        answer(server, "echo:x", "other", timeout=8)
