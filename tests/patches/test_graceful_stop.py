"""A stop answers what was accepted, and ends with a status that tells how it went."""

import signal
from pathlib import Path

import pytest

from tests.support.clients import children
from tests.support.probes import (
    OTHER,
    OURS,
    Model,
    answer,
    ends,
    happens,
    in_background,
    last_line,
    repository,
    tell,
    until,
)
from tests.support.servers import Serve


@pytest.mark.parametrize("workers", [0, 2])
def test_accepted_request_is_answered(serve: Serve, tmp_path: Path, workers: int) -> None:
    server = serve(folder=repository(tmp_path, OURS, workers=workers))
    gate = tmp_path / "gate"
    waiting = in_background(lambda: answer(server, f"wait:{gate}"))
    until((tmp_path / "gate.begun").exists)
    for _ in range(3):  # the second and third change nothing
        server.process.send_signal(signal.SIGTERM)
    assert not happens(lambda: server.process.poll() is not None, within=1)
    gate.touch()
    assert waiting.result() == "waited"
    assert server.process.wait(10) == 0
    until(lambda: not children(server))


def test_without(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, workers=2, without="graceful_stop"))
    gate = tmp_path / "gate"
    waiting = in_background(lambda: answer(server, f"wait:{gate}", timeout=20))
    until((tmp_path / "gate.begun").exists)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: "Waiting for shutdown of default inference pool" in server.output())
    gate.touch()
    assert waiting.result(within=30) != "waited"


PATIENCE = {"graceful_stop": ("EXIT_PATIENCE = 12.0", "EXIT_PATIENCE = 2.0")}


def test_request_that_does_not_end_is_given_up(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, edits=PATIENCE))
    waiting = in_background(lambda: answer(server, f"wait:{tmp_path / 'gate'}"))
    until((tmp_path / "gate.begun").exists)
    assert ends(server)
    assert server.process.returncode == 0
    assert waiting.result() != "waited"


def test_request_to_another_model_is_waited_for(serve: Serve, tmp_path: Path) -> None:
    """MLServer does not limit it."""
    server = serve(folder=repository(tmp_path, OURS, OTHER, edits=PATIENCE))
    gate = tmp_path / "gate"
    waiting = in_background(lambda: answer(server, f"wait:{gate}", "other"))
    until((tmp_path / "gate.begun").exists)
    assert not ends(server, within=5)
    gate.touch()
    assert waiting.result() == "waited"
    assert server.process.wait(10) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_failed_model_is_told(serve: Serve, tmp_path: Path, workers: int) -> None:
    broken = Model("broken", ours=False, extra={"load_fails": "No such file."})
    server = serve(folder=repository(tmp_path, OURS, broken, workers=workers), ready=False)
    assert server.process.wait(60) == 1
    assert last_line(server).startswith("The server stops: ")
    assert last_line(server).endswith("No such file.")
    until(lambda: not children(server))


def test_metrics_of_ended_processes_are_removed(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, workers=1))
    assert tell(server, "echo:x").ok
    assert list((tmp_path / "metrics").glob("*.db"))
    assert server.stop() == 0
    assert not list((tmp_path / "metrics").glob("*.db"))
