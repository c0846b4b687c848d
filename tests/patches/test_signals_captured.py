"""SIGTERM reaches MLServer at once, also while requests are under way."""

import signal
from pathlib import Path

import pytest

from conftest import Serve
from local import LocalServer
from probes import OURS, answer, ends, in_background, repository, until

PATIENCE = {"graceful_stop": ("EXIT_PATIENCE = 12.0", "EXIT_PATIENCE = 2.0")}


def busy(serve: Serve, folder: Path, without: str | None = None) -> LocalServer:
    """A server with a request that does not end."""
    server = serve(folder=repository(folder, OURS, without=without, edits=PATIENCE))
    in_background(lambda: answer(server, f"wait:{folder / 'never'}"))
    until((folder / "never.begun").exists)
    return server


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_signal_stops_the_server(serve: Serve, tmp_path: Path, sig: signal.Signals) -> None:
    server = busy(serve, tmp_path)
    assert ends(server, sig)
    assert server.process.returncode == 0


def test_without(serve: Serve, tmp_path: Path) -> None:
    assert not ends(busy(serve, tmp_path, without="signals_captured"), within=6)
