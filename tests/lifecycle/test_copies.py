"""Two copies of the runtime's folder in one repository each run their own code."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from clients import COFFEE, LABEL, assert_refused, body, classify, infer, labels, repository, tensor
from conftest import Serve
from copies import LABELS_OF_SECOND, make_repository, set_default_top_k
from local import LocalServer

PICTURE = COFFEE.read_bytes()
REQUEST = body(tensor(PICTURE))


@pytest.fixture(params=[0, 2], ids=["in-process", "workers"])
def copies(
    serve: Serve, tmp_path: Path, small_checkpoint: Path, request: pytest.FixtureRequest
) -> LocalServer:
    root = make_repository(tmp_path / "repository", small_checkpoint, request.param)
    return serve(folder=root)


def counts(server: LocalServer) -> dict[str, set[int]]:
    """How many labels each model answers by default, over both routes, all asked at once."""

    def ask(number: int) -> tuple[str, list[str]]:
        name = ("first", "second")[number % 2]
        if number % 4 < 2:
            return name, labels(infer(server, REQUEST, model=name))
        return name, labels(classify(server, PICTURE, model=name))

    found: dict[str, set[int]] = {"first": set(), "second": set()}
    with ThreadPoolExecutor(4) as pool:
        for name, told in pool.map(ask, range(16)):
            assert told[0] == LABEL if name == "first" else set(told) <= LABELS_OF_SECOND
            found[name].add(len(told))
    return found


def test_each_copy_runs_its_own_code(copies: LocalServer, tmp_path: Path) -> None:
    """From the start, and after a reload of one whose code was edited; nothing but the package and
    serve-model is ever imported under a name of its own."""
    assert counts(copies) == {"first": {5}, "second": {2}}
    assert_own_sentences(copies)
    assert_nothing_else_is_imported(copies)

    set_default_top_k(tmp_path / "repository" / "first", 3)
    assert repository(copies, "load", "first").status_code == 200
    assert counts(copies) == {"first": {3}, "second": {2}}
    set_default_top_k(tmp_path / "repository" / "second", 1)
    assert repository(copies, "load", "second").status_code == 200
    assert counts(copies) == {"first": {3}, "second": {1}}
    assert_own_sentences(copies)
    assert_nothing_else_is_imported(copies)


def assert_own_sentences(server: LocalServer) -> None:
    request = body(tensor(PICTURE), outputs=[{"name": "boxes"}])
    first = assert_refused(infer(server, request, model="first"))
    second = assert_refused(infer(server, request, model="second"))
    assert first.startswith("There is no output 'boxes'")
    assert second.startswith("The second copy has no output 'boxes'")


def assert_nothing_else_is_imported(server: LocalServer) -> None:
    in_server = requests.get(f"{server.url}/modules", timeout=10).json()
    answer = infer(server, {"inputs": []}, model="probe").json()
    for modules in (in_server, answer["outputs"][0]["data"]):
        ours = {name for name in modules if name.split(".")[0] != "timm_runtime"}
        assert ours <= {"serve-model", "probe"}, ours
        assert "timm_runtime.codec" in modules
