"""Loads of one model at once leave one model loaded."""

from collections import Counter
from pathlib import Path

import requests

from tests.support.probes import Model, answer, happens, in_background, repository
from tests.support.servers import Serve


def left_loaded(serve: Serve, tmp_path: Path, without: str | None = None) -> list[int]:
    """Of each instance that was made, loads minus unloads, after three loads at once."""
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    gate.touch()
    slow = Model(extra={"notes": str(notes), "load_waits_for": str(gate)})
    server = serve(folder=repository(tmp_path, slow, without=without))
    gate.unlink()
    url = f"{server.url}/v2/repository/models/ours/load"
    loads = [in_background(lambda: requests.post(url, timeout=30).ok) for _ in range(3)]
    happens(lambda: notes.read_text().count("load") == 4, within=2)
    gate.touch()
    assert all(load.result() for load in loads)
    assert answer(server, "echo:x") == "x"
    loaded: Counter[str] = Counter()
    for line in notes.read_text().splitlines():
        what, number, _ = line.split()
        loaded[number] += 1 if what == "load" else -1
    return sorted(loaded.values())


def test_one_is_left(serve: Serve, tmp_path: Path) -> None:
    assert left_loaded(serve, tmp_path) == [0, 0, 0, 1]


def test_without(serve: Serve, tmp_path: Path) -> None:
    assert left_loaded(serve, tmp_path, without="repository_race") != [0, 0, 0, 1]
