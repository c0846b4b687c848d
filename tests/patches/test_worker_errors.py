"""A worker's refusal reads as one without workers does."""

from pathlib import Path

from tests.support.probes import OTHER, OURS, repository, tell
from tests.support.servers import Serve


def test_no_class_in_our_answers(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, OTHER, workers=1))
    refusal = tell(server, "refuse:400")
    assert (refusal.status_code, refusal.json()) == (400, {"error": "The probe refuses."})
    crash = tell(server, "crash")
    assert crash.status_code == 500
    assert "kernel" not in crash.text and "Error" not in crash.text
    assert "no such kernel" in server.output()

    refusal = tell(server, "refuse:400", "other")
    text = "mlserver.errors.MLServerError: The probe refuses."
    assert (refusal.status_code, refusal.json()) == (400, {"error": text})
    crash = tell(server, "crash", "other")
    text = "builtins.RuntimeError: no such kernel"
    assert (crash.status_code, crash.json()) == (500, {"error": text})


def test_without(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, workers=1, without="worker_errors"))
    assert tell(server, "refuse:400").json() != {"error": "The probe refuses."}
