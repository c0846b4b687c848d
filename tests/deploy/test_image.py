"""What MLServer's Dockerfile puts into an image."""

import pytest
from mlserver.cli.build import generate_dockerfile
from packaging.requirements import Requirement

from tests.support.folders import FOLDER
from tests.support.pins import PYTHONS, locked, requirements

pytestmark = pytest.mark.slow


def copied(dockerfile: str) -> list[list[str]]:
    """Return the sources of each COPY, with their globs."""
    joined = dockerfile.replace("\\\n", " ")
    lines = [line.split()[1:] for line in joined.splitlines() if line.startswith("COPY")]
    return [line[:-1] for line in lines if not any(word.startswith("--from") for word in line)]


def test_dockerfile_finds_settings_and_requirements_and_builds_no_conda_environment() -> None:
    conda, settings, everything = copied(generate_dockerfile())
    assert [list(FOLDER.glob(pattern.removeprefix("./"))) for pattern in conda] == [[]] * 4
    assert [list(FOLDER.glob(pattern.removeprefix("./"))) for pattern in settings] == [
        [FOLDER / "settings.json"],
        [FOLDER / "model-settings.json"],
        [FOLDER / "requirements.txt"],
    ]
    assert everything == ["."]


def test_requirements_stand_alone() -> None:
    """The image installs them before it has the rest of the folder."""
    lines = requirements("requirements.txt")
    assert lines
    for line in lines:
        assert Requirement(line).url is None


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_keeps_to_the_requirements(python: str) -> None:
    versions = locked(python)
    for line in requirements("requirements.txt"):
        wanted = Requirement(line)
        assert wanted.specifier.contains(versions[wanted.name.replace("_", "-")]), line
