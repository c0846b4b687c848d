"""The soak test starts, answers, and ends with a sum."""

import os
import subprocess
import sys

from tests.support.paths import ROOT


def test_some_seconds_of_it() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "soak.py", "--clients", "2", "--workers", "1"],
        env={**os.environ, "MINUTES": "0.1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " 0 wrong" in run.stdout
