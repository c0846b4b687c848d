"""The locks install on Apple silicon without a compiler."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.folders import FOLDER
from tests.support.pins import PYTHONS

pytestmark = pytest.mark.slow

UV = Path(sys.executable).with_name("uv")
PLATFORM = "aarch64-apple-darwin"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-serve.lock"])
def test_wheels_for_apple_silicon(tmp_path: Path, lock: str, python: str) -> None:
    """Every pin has a wheel; gevent has none for older Pythons in newer versions."""
    out = tmp_path / "resolved.txt"
    command = [UV, "pip", "compile", "--quiet", "--no-deps", "--python-platform", PLATFORM]
    command += ["--python-version", python, "--only-binary", ":all:", "--no-annotate"]
    subprocess.run([*command, FOLDER / lock, "-o", out], check=True)
    resolved = {line.partition("==")[0] for line in out.read_text().splitlines()}
    assert {"mlserver", "openvino", "msgspec", "uvloop"} <= resolved
