"""Requirements of the runtime, and the Pythons that they are locked for."""

from pathlib import Path

from packaging.requirements import Requirement

PYTHONS = ("3.10", "3.11", "3.12")

AS_TESTED = "# --- As tested: "
"""The lock's pins follow this line in requirements.txt."""


def requirements(path: Path) -> list[Requirement]:
    """Return the requirements of a file and of those that it includes."""
    direct = path.read_text().partition(AS_TESTED)[0]
    lines = [line.partition("#")[0].strip() for line in direct.splitlines()]
    included = [path.parent / line.removeprefix("-r ") for line in lines if line.startswith("-r ")]
    own = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return own + [requirement for other in included for requirement in requirements(other)]
