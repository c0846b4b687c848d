"""Servers of the Hugging Face runtime, on free loopback ports, each gone with its test."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
for folder in ("client", "huggingface"):
    sys.path.insert(0, str(ROOT / folder))

from local import MLSERVER, LocalServer, start  # noqa: E402

MAIN = ROOT / ".venv"
"""TinyViTModel's environment."""

OWN_ENVIRONMENT = {
    "environment_path": sys.prefix,
    "environment_tarball": "never opened, but keeps the runtime out of the main process",
}

PATIENCE = 300.0
"""Seconds until a server is ready; tensorflow alone takes ten to import."""

Serve = Callable[..., LocalServer]


def start_server(
    folder: Path,
    work: Path,
    mlserver: Path = MLSERVER,
    environment: Mapping[str, str] | None = None,
) -> LocalServer:
    """Starts a server that has no network and leaves everything, its log too, below `work`."""
    variables = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work / "hub"),
        "TINYVIT_CACHE_DIR": str(work / "cache"),
        **(environment or {}),
    }
    return start(folder, env=variables, log=work / "log", cwd=work, mlserver=mlserver)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """`serve(folder, VARIABLE=...)`: a starting server of one test's own."""
    with ExitStack() as stack:

        def one(folder: Path = ROOT / "huggingface", **environment: str) -> LocalServer:
            server = start_server(folder, tmp_path, environment=environment)
            stack.callback(server.kill)
            return server

        yield one


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """`mlserver start huggingface`, as shipped; not to be broken."""
    server = start_server(ROOT / "huggingface", tmp_path_factory.mktemp("server"))
    try:
        yield server.wait(PATIENCE, "huggingface")
    finally:
        server.kill()


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """One server, of .venv, with both models, each in its own environment."""
    assert (MAIN / "bin" / "mlserver").exists(), "TinyViTModel's own environment: make install"
    work = tmp_path_factory.mktemp("both")
    repository = copy_repository(work / "repository", workers=1, **OWN_ENVIRONMENT)
    server = start_server(repository, work, MAIN / "bin" / "mlserver")
    try:
        yield server.wait(PATIENCE, "tinyvit").wait(PATIENCE, "huggingface")
    finally:
        server.kill()


def copy_repository(to: Path, workers: int = 0, **parameters: Any) -> Path:
    """`tinyvit/` and `huggingface/` side by side, a model repository for one server; `parameters`
    change the latter's, and `extra` those below it, where None takes one away."""
    for name in ("tinyvit", "huggingface"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    (to / "settings.json").write_text(json.dumps({"debug": False, "parallel_workers": workers}))
    path = to / "huggingface" / "model-settings.json"
    settings = json.loads(path.read_text())
    extra = settings["parameters"]["extra"] | parameters.pop("extra", {})
    extra = {name: value for name, value in extra.items() if value is not None}
    settings["parameters"] |= {**parameters, "extra": extra}
    path.write_text(json.dumps(settings))
    return to
