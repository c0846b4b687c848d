"""Workers end when the main process does, however that ends."""

import os
import signal
from pathlib import Path

import pytest

from client.local import LocalServer
from tests.support.clients import workers
from tests.support.probes import OURS, happens, repository
from tests.support.servers import Serve


def workers_end(server: LocalServer, sig: signal.Signals) -> bool:
    pids = workers(server)
    assert len(pids) == 2
    server.process.send_signal(sig)
    server.process.wait(10)
    ended = happens(lambda: not workers(server), within=5)
    for pid in workers(server):
        os.kill(pid, signal.SIGKILL)
    return ended


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGHUP, signal.SIGUSR1])
def test_workers_end(serve: Serve, tmp_path: Path, sig: signal.Signals) -> None:
    assert workers_end(serve(folder=repository(tmp_path, OURS, workers=2)), sig)


def test_without(serve: Serve, tmp_path: Path) -> None:
    folder = repository(tmp_path, OURS, workers=2, without="orphaned_workers")
    assert not workers_end(serve(folder=folder), signal.SIGKILL)
