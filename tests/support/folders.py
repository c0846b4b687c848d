"""The runtime's folder without leftovers."""

import shutil
from pathlib import Path

from tests.support.paths import ROOT

FOLDER = ROOT / "tinyvit"


def copy_to(folder: Path) -> Path:
    """Copy `tinyvit/` as git has it."""
    return Path(
        shutil.copytree(FOLDER, folder / "tinyvit", ignore=shutil.ignore_patterns("__pycache__"))
    )


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
