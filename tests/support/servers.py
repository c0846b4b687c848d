"""Folders for the servers that tests start."""

import json
from collections.abc import Callable
from pathlib import Path

from client.local import LocalServer
from tests.support.folders import copy_runtime
from tests.support.paths import ROOT

HOOK = {"model_repository_implementation": "mlserver_timm.server.ModelRepository"}
"""The line of settings.json that makes MLServer build this package's servers."""

Serve = Callable[..., LocalServer]
"""Starts a server of one test: `serve(env=..., folder=..., ready=True)`."""


def write_settings(folder: Path, **settings: object) -> None:
    """Write settings.json with these values only."""
    (folder / "settings.json").write_text(json.dumps(settings))


def write_model(
    folder: Path,
    name: str,
    implementation: str = "mlserver_timm.TimmClassifier",
    **settings: object,
) -> None:
    """Write a model-settings.json; by default it names the package's class, which needs no code."""
    folder.mkdir(parents=True, exist_ok=True)
    model = {"name": name, "implementation": implementation, **settings}
    (folder / "model-settings.json").write_text(json.dumps(model))


def add_hook(root: Path, **settings: object) -> Path:
    """Write a repository's settings.json with the hook, and put the package next to it."""
    write_settings(root, **settings, **HOOK)
    (root / "mlserver_timm").symlink_to(ROOT / "tinyvit" / "mlserver_timm")
    return root


def change_settings(folder: Path, **values: object) -> None:
    """Change top-level values of a folder's model-settings.json."""
    path = folder / "model-settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def copy_model(folder: Path, **settings: object) -> Path:
    """Copy `tinyvit/` with other model settings and without server settings."""
    copy_runtime(folder.parent, folder.name)
    (folder / "settings.json").unlink()
    change_settings(folder, **settings)
    return folder
