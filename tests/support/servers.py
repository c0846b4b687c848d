"""Folders for the servers that tests start."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from client.local import LocalServer
from tests.support.paths import ROOT

Serve = Callable[..., LocalServer]
"""Starts a server of one test: `serve(env=..., folder=..., ready=True)`."""


def settings(folder: Path, workers: int) -> Path:
    """Copy `tinyvit/` with other `parallel_workers`: a value in the file overrides the
    environment."""
    copy = folder / "tinyvit"
    shutil.copytree(ROOT / "tinyvit", copy)
    content = json.loads((copy / "settings.json").read_text())
    (copy / "settings.json").write_text(json.dumps(content | {"parallel_workers": workers}))
    return copy


def change_settings(folder: Path, **values: object) -> None:
    """Change top-level values of a folder's model-settings.json."""
    path = folder / "model-settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
