"""`make install` retries downloads that break, and keeps those that are complete."""

import io
import os
import shutil
import subprocess
import sys
import threading
import venv
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.clients import until
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

FILE = "{name}-1.0-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"


def wheel(name: str) -> bytes:
    """A package with a megabyte in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{name}.py", f"# {os.urandom(500_000).hex()}\n")
        archive.writestr(f"{info}/METADATA", METADATA.format(name=name))
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


class Index:
    """A package index that cuts off the first `breaks[name]` downloads of a package half-way.

    It waits for `may_break` before it does.
    """

    def __init__(
        self, breaks: dict[str, int], may_break: Callable[[], bool] = lambda: True
    ) -> None:
        self.breaks = breaks
        self.sent: Counter[str] = Counter()
        wheels = {name: wheel(name) for name in breaks}
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                place, name = self.path.strip("/").split("/")[:2]
                if place == "simple":
                    file = FILE.format(name=name)
                    link = f'<a href="/files/{name}/{file}" data-core-metadata="true">{file}</a>'
                    self.reply(link.encode(), "text/html")
                    return
                if self.path.endswith(".metadata"):
                    self.reply(METADATA.format(name=name).encode(), "text/plain")
                    return
                content = wheels[name]
                if index.breaks[name] > 0:
                    until(may_break)
                    index.breaks[name] -= 1
                    self.reply(content, "application/zip", len(content) // 2)
                else:
                    index.sent[name] += 1
                    self.reply(content, "application/zip")

            def reply(self, content: bytes, kind: str, only: int | None = None) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:only])

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/simple"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """The Makefile beside a lock of two packages, and an environment with uv alone."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "tinyvit").mkdir()
    (tmp_path / "tinyvit" / "requirements.lock").write_text("first==1.0\nsecond==1.0\n")
    venv.create(tmp_path / ".venv", symlinks=True)
    (tmp_path / ".venv" / "bin" / "uv").symlink_to(Path(sys.executable).with_name("uv"))
    (tmp_path / ".venv" / ".python").touch()
    return tmp_path


def install(project: Path, index: Index, retries: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["make", "install"],
        cwd=project,
        env={
            **os.environ,
            "UV_DEFAULT_INDEX": index.url,
            "UV_CACHE_DIR": str(project / "cache"),
            "UV_HTTP_RETRIES": str(retries),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def installed(project: Path) -> list[str]:
    return sorted(path.stem for path in project.glob(".venv/lib/python*/site-packages/*.py"))


def test_a_broken_download_is_retried(project: Path) -> None:
    done = install(project, Index({"first": 1, "second": 0}), retries=3)
    assert done.returncode == 0, done.stderr
    assert installed(project) == ["first", "second"]


def test_complete_downloads_are_kept_for_the_next_run(project: Path) -> None:
    kept = "cache/wheels-*/index/*/first/1.0-py3-none-any"
    index = Index({"first": 0, "second": 1000}, lambda: any(project.glob(kept)))
    assert install(project, index, retries=0).returncode != 0
    assert installed(project) == []
    index.breaks["second"] = 0
    done = install(project, index, retries=0)
    assert done.returncode == 0, done.stderr
    assert installed(project) == ["first", "second"]
    assert index.sent == {"first": 1, "second": 1}


def test_progress_is_shown(project: Path) -> None:
    done = install(project, Index({"first": 0, "second": 0}), retries=0)
    assert "Installing the runtime" in done.stdout
    assert "Installed 2 packages" in done.stderr
