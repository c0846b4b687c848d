"""What MLServer's Dockerfile puts into an image."""

import pytest
from mlserver.cli.build import generate_dockerfile

from tests.support.folders import FOLDER

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
