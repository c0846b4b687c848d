"""Checkpoints exported by the command that operators use."""

import subprocess
import sys
from pathlib import Path

from tests.support.paths import RUNTIME


def export(checkpoint: Path, out: Path) -> Path:
    """Export a checkpoint and return the folder for MLSERVER_MODEL_URI."""
    command = [sys.executable, "-m", "mlserver_timm.checkpoints.export", str(checkpoint), str(out)]
    subprocess.run(command, cwd=RUNTIME, check=True)
    return out
