"""Programs that tests run to their end."""

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.paths import ROOT

UV = Path(sys.executable).with_name("uv")


class Run(NamedTuple):
    """Exit status, standard output and standard error."""

    status: int
    output: str
    errors: str


def run_program(*command: object, **options: Any) -> Run:
    """Run a program in the repository, with the options of `subprocess.run`, within 120 s."""
    options = {"cwd": ROOT, "timeout": 120, **options}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    return Run(done.returncode, done.stdout, done.stderr)


def output_of(*command: object, **options: Any) -> str:
    """Return what a program prints; it must succeed."""
    done = run_program(*command, **options)
    assert done.status == 0, done.output + done.errors
    return done.output
