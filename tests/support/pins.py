"""The requirements and the lock of the runtime's folder."""

from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

from tests.support.folders import FOLDER

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


def locked(python: str) -> dict[str, str]:
    """Return the lock's versions for one Python on this kind of machine."""
    environment = {**default_environment(), "python_version": python}
    environment["python_full_version"] = f"{python}.9"
    pins = requirements(FOLDER / "requirements.lock")
    chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    assert len({pin.name for pin in chosen}) == len(chosen)
    return {pin.name: str(pin.specifier).removeprefix("==") for pin in chosen}
