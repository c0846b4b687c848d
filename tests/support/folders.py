"""The runtime's folder without leftovers."""

import shutil
from pathlib import Path

from tests.support.paths import ROOT

FOLDER = ROOT / "tinyvit"


def copy_runtime(folder: Path, name: str = "tinyvit") -> Path:
    """Copy `tinyvit/` as git has it into a folder."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(FOLDER, folder / name, ignore=ignored))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
