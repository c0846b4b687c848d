"""What MLServer's Dockerfile puts into an image."""

import fnmatch
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlserver.cli.build import generate_dockerfile, write_dockerfile
from packaging.requirements import Requirement

from tests.support.folders import FOLDER, copy_to, files
from tests.support.pins import PYTHONS, locked, requirements
from tests.support.servers import Serve

pytestmark = pytest.mark.slow

MATERIAL = {".py", ".typed", ".json", ".txt", ".lock", ".html", ".md", ".safetensors"}
"""Suffixes of the files in an image."""


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


def test_the_image_gets_no_leftovers_of_a_used_folder(
    serve: Serve, tmp_path: Path, public_folder: Path
) -> None:
    folder = copy_to(tmp_path)
    server = serve(
        folder=folder,
        env={
            "MLSERVER_METRICS_DIR": str(folder / ".metrics"),
            "MLSERVER_ENVIRONMENTS_DIR": str(folder / ".envs"),
            "PYTHONDONTWRITEBYTECODE": "",
        },
    )
    server.stop()
    for name in (".DS_Store", ".envs/left", ".metrics/left"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert (folder / "__pycache__").exists()
    dockerfile = Path(write_dockerfile(str(public_folder), generate_dockerfile()))
    ignored = Path(f"{dockerfile}.dockerignore").read_text().splitlines()
    # MLServer's list excludes bytecode of the folder itself alone.
    left = {path for path in context(folder, ignored) if path.suffix != ".pyc"}
    assert left == {path.relative_to(folder) for path in files(folder) if path.suffix in MATERIAL}
    assert left == {path.relative_to(FOLDER) for path in tracked(FOLDER)}


def context(folder: Path, patterns: list[str]) -> Iterator[Path]:
    """Yield what Docker sends; patterns without `**/` match in the root only."""
    rules = [line.strip() for line in patterns if line.strip() and not line.startswith("#")]
    for path in files(folder):
        relative = path.relative_to(folder)
        parts = [*relative.parents, relative]
        if not any(
            fnmatch.fnmatch(str(part), rule.removeprefix("./").removeprefix("**/").rstrip("/"))
            for rule in rules
            for part in parts
            if "**/" in rule or "/" not in str(part)
        ):
            yield relative


def tracked(folder: Path) -> list[Path]:
    """Return the files that git tracks or would track; without git, all."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        return [path for path in files(folder) if path.suffix in MATERIAL]
    return [path for name in listed.stdout.split("\0") if (path := folder / name).is_file()]


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_keeps_to_the_requirements(python: str) -> None:
    versions = locked(python)
    for line in requirements("requirements.txt"):
        wanted = Requirement(line)
        assert wanted.specifier.contains(versions[wanted.name.replace("_", "-")]), line
