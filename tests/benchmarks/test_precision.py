"""What a precision costs is measured against timm: in fp32 nothing."""

import subprocess
import sys

from tests.support.paths import ROOT


def test_fp32_costs_nothing() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "precision.py"]
    arguments = ["--precision", "fp32", "--each", "2"]
    run = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "of 18 crops of 9 photographs 18 keep" in run.stdout
    assert "a score is off by 0.0000 at most" in run.stdout
