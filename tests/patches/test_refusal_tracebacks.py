"""The log has one line for a refusal of ours, and a traceback for everybody else's."""

from pathlib import Path

import pytest

from tests.support.probes import OTHER, OURS, Model, code, last_line, repository, tell
from tests.support.servers import Serve

REFUSED = "The probe refuses."


@pytest.mark.parametrize("workers", [0, 1])
def test_refusals_have_no_traceback(serve: Serve, tmp_path: Path, workers: int) -> None:
    server = serve(folder=repository(tmp_path, OURS, OTHER, workers=workers))
    assert code(server, "refuse:400").name == "INVALID_ARGUMENT"
    assert tell(server, "refuse:400").status_code == 400
    assert "Traceback" not in server.output()
    assert code(server, "refuse:400", "other").name == "INVALID_ARGUMENT"
    assert "Traceback" in server.output()
    assert REFUSED in server.output()


def test_failure_to_load_is_a_sentence(serve: Serve, tmp_path: Path) -> None:
    broken = Model(extra={"load_fails": "The weights are bananas."})
    server = serve(folder=repository(tmp_path, broken), ready=False)
    assert server.process.wait(60) == 1
    assert last_line(server) == "The server stops: The weights are bananas."
    assert "Traceback" not in server.output()


@pytest.mark.parametrize("workers", [0, 1])
def test_without(serve: Serve, tmp_path: Path, workers: int) -> None:
    folder = repository(tmp_path, OURS, workers=workers, without="refusal_tracebacks")
    server = serve(folder=folder)
    assert code(server, "refuse:400").name == "INVALID_ARGUMENT"
    assert "Traceback" in server.output()
