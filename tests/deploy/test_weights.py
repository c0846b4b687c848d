"""Weights of the hub can be baked into an image."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from conftest import ROOT
from folders import FOLDER

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as a download asks for; one model, the sample."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        files = {path.name: path.read_bytes() for path in (FOLDER / "sample").iterdir()}
        if self.path.startswith("/api/models/timm/sample/revision/"):
            siblings = [{"rfilename": name} for name in (*files, "pytorch_model.bin")]
            listing = {"id": "timm/sample", "sha": COMMIT, "siblings": siblings}
            self._send(
                200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body
            )
            return
        if self.path.startswith(f"/api/models/timm/sample/tree/{COMMIT}"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": COMMIT}
                for name, content in files.items()
            ]
            self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
            return
        found = re.fullmatch(rf"/timm/sample/resolve/{COMMIT}/(.+)", self.path)
        if found and found[1] in files:
            headers = {"ETag": f'"{found[1]}"', "X-Repo-Commit": COMMIT}
            self._send(200, files[found[1]], headers, body)
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def weights(model: str, folder: Path, endpoint: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder.parent / "hub")}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "weights.py"), model, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_weights_of_the_hub_can_be_baked_in(hub: str, tmp_path: Path) -> None:
    done = weights("timm/sample", tmp_path / "weights", hub)
    assert done.returncode == 0, done.stderr
    assert f"timm/sample is in {tmp_path / 'weights'} (9.8 MiB of weights)." in done.stdout
    stored = {path.name for path in (tmp_path / "weights").iterdir() if path.is_file()}
    assert stored == {"config.json", "model.safetensors"}
    for name in stored:
        expected = (FOLDER / "sample" / name).read_bytes()
        assert (tmp_path / "weights" / name).read_bytes() == expected


@pytest.mark.parametrize(
    ("model", "endpoint"), [("timm/unknown", None), ("timm/sample", "http://127.0.0.1:9")]
)
def test_weights_that_cannot_be_had_are_told_in_one_sentence(
    hub: str, tmp_path: Path, model: str, endpoint: str | None
) -> None:
    done = weights(model, tmp_path / "weights", endpoint or hub)
    assert done.returncode == 1
    assert re.fullmatch(rf"{model} cannot be fetched from the hub: .+\.\n", done.stderr), (
        done.stderr
    )
