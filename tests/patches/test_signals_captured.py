"""Ctrl-C lets requests end that are under way."""

import signal
from pathlib import Path

import pytest

from conftest import Serve
from local import LocalServer
from probes import OURS, answer, happens, in_background, repository, until


def ends_early(server: LocalServer, sig: signal.Signals, gate: Path) -> bool:
    """Whether the server does not wait for a request that is under way."""
    waiting = in_background(lambda: answer(server, f"wait:{gate}"))
    until(Path(f"{gate}.begun").exists)
    server.process.send_signal(sig)
    if happens(lambda: server.process.poll() is not None, within=2):
        return True
    gate.touch()
    assert waiting.result() == "waited"
    assert server.process.wait(10) == 0
    return False


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_request_under_way_is_answered(serve: Serve, tmp_path: Path, sig: signal.Signals) -> None:
    server = serve(folder=repository(tmp_path, OURS))
    assert not ends_early(server, sig, tmp_path / "gate")


def test_without(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, without="signals_captured"))
    assert ends_early(server, signal.SIGINT, tmp_path / "gate")
