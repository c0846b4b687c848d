"""`make install` retries downloads that break, and keeps those that are complete."""

import io
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.support.http import http_server, reply
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

FILE = "{name}-1.0-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def wheel(name: str) -> bytes:
    """Return a package of half a megabyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{name}.py", f"# {os.urandom(250_000).hex()}\n")
        archive.writestr(f"{name}-1.0.dist-info/METADATA", METADATA.format(name=name))
        archive.writestr(f"{name}-1.0.dist-info/WHEEL", WHEEL)
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return buffer.getvalue()


class Index:
    """A package index that cuts off the first `breaks[name]` downloads of a package."""

    def __init__(self) -> None:
        self.url = ""
        self.wheels = {name: wheel(name) for name in ("first", "second")}
        self.breaks: Counter[str] = Counter()
        self.complete: Counter[str] = Counter()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        kind, name = handler.path.strip("/").split("/")[:2]
        file = FILE.format(name=name)
        if kind == "simple":
            link = f'<a href="/files/{name}/{file}" data-core-metadata="true">{file}</a>'
            reply(handler, 200, link.encode(), Content_Type="text/html")
        elif handler.path.endswith(".metadata"):
            reply(handler, 200, METADATA.format(name=name).encode(), Content_Type="text/plain")
        else:
            breaks = self.breaks[name] > 0
            (self.breaks if breaks else self.complete)[name] += -1 if breaks else 1
            reply(handler, 200, self.wheels[name], breaks, Content_Type="application/zip")


@pytest.fixture
def index() -> Iterator[Index]:
    index = Index()
    with http_server(index.answer) as index.url:
        yield index


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The Makefile with a lock of two packages, and an environment that has only uv."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "tinyvit").mkdir()
    (tmp_path / "tinyvit" / "requirements.lock").write_text("first==1.0\nsecond==1.0\n")
    venv.create(tmp_path / ".venv", symlinks=True)
    (tmp_path / ".venv" / "bin" / "uv").symlink_to(Path(sys.executable).with_name("uv"))
    (tmp_path / ".venv" / ".python").touch()
    return tmp_path


def install(project: Path, index: Index, retries: int) -> "subprocess.CompletedProcess[str]":
    env = {
        **os.environ,
        "UV_DEFAULT_INDEX": f"{index.url}/simple",
        "UV_CACHE_DIR": str(project / "cache"),
        "UV_HTTP_RETRIES": str(retries),
        "UV_CONCURRENT_DOWNLOADS": "1",
    }
    command = ["make", "install"]
    return subprocess.run(
        command, cwd=project, env=env, capture_output=True, text=True, timeout=120
    )


def installed(project: Path) -> list[str]:
    return sorted(path.stem for path in project.glob(".venv/lib/python*/site-packages/*.py"))


def test_broken_downloads_are_retried(project: Path, index: Index) -> None:
    index.breaks["first"] = 1
    done = install(project, index, retries=3)
    assert done.returncode == 0, done.stderr
    assert "Installing the runtime" in done.stdout
    assert "Installed 2 packages" in done.stderr
    assert installed(project) == ["first", "second"]


def test_complete_downloads_are_kept_for_the_next_run(project: Path, index: Index) -> None:
    index.breaks["second"] = 1000
    while not index.complete["first"]:  # uv may take the second package first
        assert install(project, index, retries=0).returncode != 0
        assert installed(project) == []
    index.breaks["second"] = 0
    done = install(project, index, retries=0)
    assert done.returncode == 0, done.stderr
    assert installed(project) == ["first", "second"]
    assert index.complete == {"first": 1, "second": 1}
