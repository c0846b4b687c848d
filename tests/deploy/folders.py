"""The runtime's folder as it is copied into an image."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT

FOLDER = ROOT / "tinyvit"


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """An empty folder that other users can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def copy_to(folder: Path) -> Path:
    """`tinyvit/` as git has it."""
    return Path(
        shutil.copytree(FOLDER, folder / "tinyvit", ignore=shutil.ignore_patterns("__pycache__"))
    )


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
