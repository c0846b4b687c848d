"""Where things are in the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

RUNTIME = ROOT / "tinyvit"
SAMPLE = RUNTIME / "sample"
"""The bundled checkpoint."""
DEPLOY = ROOT / "deploy"
