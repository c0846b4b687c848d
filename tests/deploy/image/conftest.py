"""The images, built once for all tests; `make test-image` runs them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containers import REVISION
from tests.support.docker_engine import Engine, make_base, pip_secrets, running
from tests.support.folders import copy_runtime
from tests.support.paths import ROOT

BASE = "python:3.11-slim"


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running(tmp_path_factory.mktemp("docker")) as engine:
        yield engine


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return pip_secrets(tmp_path_factory.mktemp("pip"))


@pytest.fixture(scope="session")
def base(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    make_base(engine, tmp_path_factory.mktemp("base"), BASE)
    return BASE


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `tinyvit/` of someone whose umask is strict, with a cache and tests in it."""
    copy = build_context(tmp_path_factory.mktemp("context"))
    for path in copy.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return copy


@pytest.fixture(scope="session")
def public_context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the usual modes, but for the weights, which safetensors writes with 0600."""
    copy = build_context(tmp_path_factory.mktemp("public"))
    (copy / "own" / "model.safetensors").chmod(0o600)
    return copy


def build_context(folder: Path) -> Path:
    copy = copy_runtime(folder)
    shutil.copytree(copy / "sample", copy / "own")
    for name in (".cache", "tests", "own/.cache"):
        (copy / name).mkdir()
        (copy / name / "left-over").write_text("not for the image")
    return copy


@pytest.fixture(scope="session")
def image(engine: Engine, base: str, secrets: list[str], context: Path) -> str:
    """As deploy/Dockerfile makes it, from a checkpoint whose files only their owner may read."""
    options = [*secrets, "--build-arg", "CHECKPOINT=own", "--build-arg", f"REVISION={REVISION}"]
    engine.build(context, ROOT / "deploy" / "Dockerfile", "tinyvit:1.0.0", *options)
    return "tinyvit:1.0.0"
