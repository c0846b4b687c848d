"""The requirements and the lock of the runtime's folder."""

from packaging.markers import default_environment
from packaging.requirements import Requirement

from tests.support.folders import FOLDER

PYTHONS = ("3.10", "3.11", "3.12")


def requirements(name: str) -> list[str]:
    """Return the requirements without their comments."""
    direct = (FOLDER / name).read_text().partition("# --- As tested: ")[0]
    lines = (line.split("#")[0].strip() for line in direct.splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def locked(python: str) -> dict[str, str]:
    """Return the lock's versions for one Python on this kind of machine."""
    environment = {**default_environment(), "python_version": python}
    environment["python_full_version"] = f"{python}.9"
    pins = [Requirement(line) for line in requirements("requirements.lock")]
    chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    assert len({pin.name for pin in chosen}) == len(chosen)
    return {pin.name: str(pin.specifier).removeprefix("==") for pin in chosen}
