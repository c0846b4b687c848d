"""Servers and folders of the Hugging Face runtime."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from client.local import MLSERVER, LocalServer, start
from tests.support.paths import ROOT
from tests.support.servers import add_hook

MAIN = ROOT / ".venv"
"""TinyViTModel's environment."""

OWN_ENVIRONMENT = {
    "environment_path": sys.prefix,
    "environment_tarball": "never opened, but keeps the runtime out of the main process",
}

PATIENCE = 300.0
"""Seconds until a server is ready; tensorflow alone takes ten to import."""

Serve = Callable[..., LocalServer]


def start_server(
    folder: Path,
    work: Path,
    mlserver: Path = MLSERVER,
    environment: Mapping[str, str] | None = None,
) -> LocalServer:
    """Starts a server that has no network and leaves everything, its log too, below `work`."""
    variables = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work / "hub"),
        "TINYVIT_CACHE_DIR": str(work / "cache"),
        **(environment or {}),
    }
    return start(folder, env=variables, log=work / "log", cwd=work, mlserver=mlserver)


def copy_repository(to: Path, workers: int = 0, **parameters: Any) -> Path:
    """`tinyvit/` and `huggingface/` side by side, a model repository for one server; `parameters`
    change the latter's, and `extra` those below it, where None takes one away."""
    for name in ("tinyvit", "huggingface"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    add_hook(to, debug=False, parallel_workers=workers)
    path = to / "huggingface" / "model-settings.json"
    settings = json.loads(path.read_text())
    extra = settings["parameters"]["extra"] | parameters.pop("extra", {})
    extra = {name: value for name, value in extra.items() if value is not None}
    settings["parameters"] |= {**parameters, "extra": extra}
    path.write_text(json.dumps(settings))
    return to
