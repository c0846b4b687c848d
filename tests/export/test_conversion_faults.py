"""A conversion without a user name, on a full disk, and next to a cache entry of another user."""

import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlserver_timm.checkpoints import export
from mlserver_timm.checkpoints.checkpoint import Checkpoint
from mlserver_timm.checkpoints.exported import FILES, SUMS, ExportedModel
from tests.support.checkpoints import NAMES
from tests.support.paths import ROOT
from tests.support.programs import output_of

pytestmark = pytest.mark.slow

WITHOUT_PASSWD_ENTRY = """
import pwd

def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = getpwuid
"""


@pytest.fixture
def checkpoint(small_checkpoint: Path) -> Checkpoint:
    return Checkpoint(small_checkpoint, str(small_checkpoint))


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions that converted, in this process or in another one."""
    calls: list[str] = []

    def count(name: str) -> None:
        function: Callable[..., Any] = getattr(export, name)

        def counted(*arguments: Any) -> Any:
            calls.append(name)
            return function(*arguments)

        monkeypatch.setattr(export, name, counted)

    for name in ("convert_here", "_run_converter"):
        count(name)
    return calls


def test_user_without_a_passwd_entry(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As with `docker run --user 1000` and on OpenShift."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_PASSWD_ENTRY)
    anonymous = {"LOGNAME", "USER", "LNAME", "USERNAME", "TORCHINDUCTOR_CACHE_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in anonymous}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT / "tinyvit")])
    out = tmp_path / "out"
    program = (sys.executable, "-m", "mlserver_timm.checkpoints.export")
    output_of(*program, checkpoint.folder, out, env=environment, timeout=None)
    ExportedModel(out).read()


def test_full_disk(
    checkpoint: Checkpoint,
    conversions: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The network is converted once, and one warning says why it is not kept."""

    def no_space(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with caplog.at_level(logging.WARNING, "mlserver.tinyvit"):
        _, description = export.convert(checkpoint, tmp_path / "cache")
    assert description.labels == NAMES
    assert conversions == ["convert_here"]
    (message,) = caplog.messages
    assert "No space left on device" in message
    assert not list((tmp_path / "cache").iterdir())


def test_cache_entry_of_another_user(
    checkpoint: Checkpoint,
    conversions: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its folder has mode 0700: one warning, and a conversion that is served without the cache."""
    cache = tmp_path / "cache"
    export.convert(checkpoint, cache)
    (entry,) = cache.iterdir()
    conversions.clear()

    def denied(path: Path) -> bytes:
        if path.parent == entry:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        with path.open("rb") as file:
            return file.read()

    def undeletable(*_: Any, **__: Any) -> None:
        """shutil.rmtree(ignore_errors=True) leaves the folder of another user."""

    monkeypatch.setattr(Path, "read_bytes", denied)
    monkeypatch.setattr(export, "shutil", SimpleNamespace(rmtree=undeletable))
    with caplog.at_level(logging.WARNING, "mlserver.tinyvit"):
        _, description = export.convert(checkpoint, cache)
    assert description.labels == NAMES
    assert conversions == ["_run_converter"]
    (message,) = caplog.messages
    assert f"No permission to read {entry}" in message
    assert list(cache.iterdir()) == [entry]
    assert {path.name for path in entry.iterdir()} == {*FILES, SUMS}
