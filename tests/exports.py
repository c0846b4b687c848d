"""Checkpoints exported as an operator does it."""

import subprocess
import sys
from pathlib import Path

RUNTIME = Path(__file__).resolve().parents[1] / "tinyvit"


def export(checkpoint: Path, out: Path) -> Path:
    """The exported folder `out`, for MLSERVER_MODEL_URI."""
    command = [sys.executable, "-m", "timm_runtime.export", str(checkpoint), str(out)]
    subprocess.run(command, cwd=RUNTIME, check=True)
    return out
