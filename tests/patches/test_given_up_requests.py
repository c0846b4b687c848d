"""A worker stops working for a client of ours that has gone, and goes on for everybody else's."""

from pathlib import Path

from client.local import LocalServer
from tests.support.probes import OTHER, OURS, answer, hang_up_after, happens, repository
from tests.support.servers import Serve


def is_cancelled(server: LocalServer, tmp_path: Path, model: str) -> bool:
    """What the worker was doing when the client hung up."""
    gate = tmp_path / model
    hang_up_after(server, f"wait:{gate}", Path(f"{gate}.begun"), model)
    return happens(Path(f"{gate}.cancelled").exists, within=2)


def test_work_ends(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, OTHER, workers=1))
    assert is_cancelled(server, tmp_path, "ours")
    assert not is_cancelled(server, tmp_path, "other")
    assert answer(server, "echo:x") == "x"
    assert "Traceback" not in server.output()


def test_without(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, workers=1, without="given_up_requests"))
    assert not is_cancelled(server, tmp_path, "ours")
