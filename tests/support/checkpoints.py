"""Changes of checkpoints, and a stand-in for the hub."""

import http.server
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = "timm/somebody.finetuned"
REVISION = "0123456789abcdef0123456789abcdef01234567"
NAMES = ["tabby", "coffee", "neither"]


def edit(folder: Path, **values: Any) -> None:
    """Change entries of a config.json; None removes one."""
    content = json.loads((folder / "config.json").read_text()) | values
    kept = {name: value for name, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def assert_one_sentence(error: Any) -> None:
    text = str(error)
    assert "\n" not in text and text.endswith(".") and len(text) < 600, text


def fill_cache(home: Path, folder: Path, repository: str = REPOSITORY) -> None:
    """Put a checkpoint where the hub's client stores a download."""
    cache = home / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = cache / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(REVISION)
    for i, name in enumerate(("config.json", "model.safetensors")):
        blob = cache / "blobs" / f"{i:040x}"
        shutil.copy(folder / name, blob)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)


@contextmanager
def hub(files: Mapping[str, bytes] | int, cut: int | None = None) -> Iterator[str]:
    """Yield the URL of a hub with these files in REPOSITORY, or one that refuses with a status.

    If `cut` is given, the connection ends after that many bytes of the weights.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            name = path.rpartition("/")[2]
            if isinstance(files, int):
                self.reply(files, b'{"error": "no"}')
            elif path.startswith(f"/api/models/{REPOSITORY}/tree"):
                entries = [
                    {"type": "file", "path": n, "size": len(f), "oid": "0" * 40}
                    for n, f in files.items()
                ]
                self.reply(200, json.dumps(entries).encode())
            elif path.startswith(f"/api/models/{REPOSITORY}"):
                siblings = [{"rfilename": n} for n in files]
                info = {"id": REPOSITORY, "sha": REVISION, "siblings": siblings, "tags": []}
                self.reply(200, json.dumps(info).encode())
            elif path == f"/{REPOSITORY}/resolve/{REVISION}/{name}" and name in files:
                self.reply(200, files[name], name)
            else:
                self.reply(404, b"{}")

        def reply(self, status: int, content: bytes, name: str = "json") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            if status == 200:
                self.send_header("X-Repo-Commit", REVISION)
                self.send_header("ETag", f'"{name}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[:cut] if name == "model.safetensors" else content)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
