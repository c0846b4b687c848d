"""Changes of checkpoints, and a stand-in for the hub."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.support.http import http_server, reply

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
def hub(files: Mapping[str, bytes] | int, cut: bool = False) -> Iterator[str]:
    """Yield the URL of a hub with these files in REPOSITORY, or one that refuses with a status.

    If `cut`, the connection ends after half of the weights.
    """

    def answer(handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        name = path.rpartition("/")[2]
        content: Any = None
        if isinstance(files, int):
            reply(handler, files, b'{"error": "no"}')
            return
        if path == f"/{REPOSITORY}/resolve/{REVISION}/{name}" and name in files:
            breaks = cut and name == "model.safetensors"
            reply(handler, 200, files[name], breaks, X_Repo_Commit=REVISION, ETag=f'"{name}"')
            return
        if path.startswith(f"/api/models/{REPOSITORY}/tree"):
            entry = {"type": "file", "oid": "0" * 40}
            content = [{**entry, "path": n, "size": len(f)} for n, f in files.items()]
        elif path.startswith(f"/api/models/{REPOSITORY}"):
            siblings = [{"rfilename": n} for n in files]
            content = {"id": REPOSITORY, "sha": REVISION, "siblings": siblings, "tags": []}
        reply(handler, 200 if content else 404, json.dumps(content).encode())

    with http_server(answer) as url:
        yield url
