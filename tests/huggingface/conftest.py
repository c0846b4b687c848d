"""Servers of the Hugging Face runtime, on free loopback ports."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from client.local import LocalServer
from tests.support.huggingface import (
    MAIN,
    OWN_ENVIRONMENT,
    PATIENCE,
    Serve,
    copy_repository,
    start_server,
)
from tests.support.paths import ROOT


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers of one test: `serve(folder, VARIABLE=...)`; they may not be ready yet."""
    with ExitStack() as stack:

        def one(folder: Path = ROOT / "huggingface", **environment: str) -> LocalServer:
            server = start_server(folder, tmp_path, environment=environment)
            stack.callback(server.kill)
            return server

        yield one


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """`mlserver start huggingface` as shipped; all tests use it, so do not break it."""
    server = start_server(ROOT / "huggingface", tmp_path_factory.mktemp("server"))
    try:
        yield server.wait(PATIENCE, "huggingface")
    finally:
        server.kill()


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server of .venv with both models, each in its own environment."""
    assert (MAIN / "bin" / "mlserver").exists(), (
        "TinyViTModel's environment is missing: run make install"
    )
    work = tmp_path_factory.mktemp("both")
    repository = copy_repository(work / "repository", workers=1, **OWN_ENVIRONMENT)
    server = start_server(repository, work, MAIN / "bin" / "mlserver")
    try:
        yield server.wait(PATIENCE, "tinyvit").wait(PATIENCE, "huggingface")
    finally:
        server.kill()
