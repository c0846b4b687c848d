"""The output of `kubectl kustomize deploy`."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.manifests import DEPLOY

KUBECTL = Path(sys.executable).with_name("kubectl")


def rendered() -> list[dict[str, Any]]:
    text = subprocess.run(
        [KUBECTL, "kustomize", DEPLOY], check=True, capture_output=True, text=True
    ).stdout
    return list(yaml.safe_load_all(text))


def one(kind: str, objects: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [each for each in objects if each["kind"] == kind]
    return found
