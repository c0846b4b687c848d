"""Ctrl-C lets requests end that are under way."""

import signal
from pathlib import Path

import pytest

from client.local import LocalServer
from tests.support.probes import OURS, answer, happens, in_background, repository, until
from tests.support.servers import Serve


def is_answered(server: LocalServer, sig: signal.Signals, gate: Path, patience: float) -> bool:
    """Whether a request that is under way at the signal, and for some time on, gets its answer."""
    waiting = in_background(lambda: answer(server, f"wait:{gate}"))
    until(Path(f"{gate}.begun").exists)
    server.process.send_signal(sig)
    happens(lambda: waiting.is_done or server.process.poll() is not None, within=patience)
    gate.touch()
    return waiting.result() == "waited"


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_request_under_way_is_answered(serve: Serve, tmp_path: Path, sig: signal.Signals) -> None:
    server = serve(folder=repository(tmp_path, OURS))
    assert is_answered(server, sig, tmp_path / "gate", patience=2)
    assert server.process.wait(10) == 0


def test_without(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, without="signals_captured"))
    assert not is_answered(server, signal.SIGINT, tmp_path / "gate", patience=9)
