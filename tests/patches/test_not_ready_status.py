"""Our model asks to come again while it is loading; another one's client gets MLServer's 400."""

from pathlib import Path

from client.local import LocalServer
from tests.support.probes import Model, code, repository, tell, until
from tests.support.servers import Serve


def loading(serve: Serve, tmp_path: Path, without: str | None = None) -> LocalServer:
    """A server whose models wait for the file `gate`."""
    extra = {"load_waits_for": str(tmp_path / "gate"), "notes": str(tmp_path / "notes")}
    models = Model(extra=extra), Model("other", ours=False, extra=extra)
    server = serve(folder=repository(tmp_path, *models, without=without), ready=False)
    until(lambda: server.output().count("Uvicorn running") == 2, 60)
    return server


def test_our_model_is_503(serve: Serve, tmp_path: Path) -> None:
    server = loading(serve, tmp_path)
    assert tell(server, "echo:x").status_code == 503
    assert tell(server, "echo:x").json() == {
        "error": "The model 'ours' is not ready. Try again in a moment."
    }
    assert code(server, "echo:x").name == "UNAVAILABLE"
    assert tell(server, "echo:x", "other").status_code == 400
    (tmp_path / "gate").touch()
    server.wait()
    assert tell(server, "echo:x").status_code == 200


def test_without(serve: Serve, tmp_path: Path) -> None:
    """Over gRPC; our own routes look before they ask MLServer."""
    server = loading(serve, tmp_path, without="not_ready_status")
    assert code(server, "echo:x").name == "INVALID_ARGUMENT"
