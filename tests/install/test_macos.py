"""macOS: wheels for Apple silicon, Homebrew's packages, and tests without what only Linux has."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.folders import FOLDER
from tests.support.paths import ROOT
from tests.support.pins import PYTHONS
from tests.support.programs import run_program

UV = Path(sys.executable).with_name("uv")
PLATFORM = "aarch64-apple-darwin"


@pytest.mark.slow
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


def test_missing_programs_are_named_as_homebrew_does(tmp_path: Path) -> None:
    for program in ("make", "bash", "id", "sed"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    uname = tmp_path / "uname"
    uname.write_text(f"#!{shutil.which('sh')}\necho Darwin\n")
    uname.chmod(0o755)
    packages = ["chromium-driver", "nginx-light", "golang-go", "openjdk-17-jdk-headless"]
    programs = "PROGRAMS=" + " ".join(
        f"missing-{package}:{package}" for package in [*packages, "iproute2"]
    )
    command = ("make", "-s", "programs", programs, "PYTHON=python3")
    make = run_program(*command, env={"PATH": str(tmp_path)})
    assert make.status != 0
    assert "brew install chromedriver nginx go openjdk@17\n" in make.errors


@pytest.mark.slow
def test_unit_tests_and_a_server_work_without_linux() -> None:
    """The decoders are new interpreters then, and send pixels through a pipe."""
    tests = ["tests/unit", "tests/server/test_ways_in.py"]
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "tests/support/without_linux")}
    run = run_program(*command, env=variables, timeout=None)
    assert run.status == 0, run.output[-10_000:] + run.errors
