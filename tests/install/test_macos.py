"""macOS: Homebrew's packages, and tests without what only Linux has."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.programs import run_program


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
