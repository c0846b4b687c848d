"""The output of `kubectl kustomize deploy`."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import DEPLOY
from tests.support.programs import output_of

KUBECTL = Path(sys.executable).with_name("kubectl")
COMPONENTS = sorted(path.name for path in (DEPLOY / "kubernetes" / "components").iterdir())


def rendered(components: Sequence[str] = (), folder: Path | None = None) -> list[dict[str, Any]]:
    """Return what `kubectl apply -k` would send; with components, from a copy in the folder."""
    root = DEPLOY
    if folder:
        root = Path(shutil.copytree(DEPLOY, folder / "deploy"))
        lines = (root / "kustomization.yaml").read_text().splitlines()
        kept = [_uncommented(line, components) for line in lines]
        (root / "kustomization.yaml").write_text("\n".join(kept))
    return list(yaml.safe_load_all(output_of(KUBECTL, "kustomize", root)))


def _uncommented(line: str, components: Sequence[str]) -> str:
    names = ("# components:", *(f"#   - kubernetes/components/{each} " for each in components))
    return line.removeprefix("# ") if line.startswith(names) else line


def one(kind: str, objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the only object of a kind."""
    (found,) = [each for each in objects if each["kind"] == kind]
    return found
