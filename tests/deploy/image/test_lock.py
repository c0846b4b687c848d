"""The lock can be installed wherever it is said to be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.folders import FOLDER
from tests.support.pins import PYTHONS, locked


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_installs_from_wheels(python: str) -> None:
    """By uv: pip would read the markers for the Python it runs in, and download every wheel."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    uv = shutil.which("uv", path=path) or "uv"
    command = [uv, "pip", "compile", str(FOLDER / "requirements.lock")]
    command += ["--python-version", python, "--python-platform", "linux", "--only-binary", ":all:"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = (Requirement(line) for line in done.stdout.splitlines())
    assert {pin.name: str(pin.specifier).removeprefix("==") for pin in found} == locked(python)
