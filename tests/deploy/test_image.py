"""What goes into an image."""

import fnmatch
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlserver.cli.build import generate_dockerfile, write_dockerfile
from packaging.markers import default_environment
from packaging.requirements import Requirement

from conftest import Serve
from folders import FOLDER, copy_to, files

MATERIAL = {".py", ".json", ".txt", ".lock", ".html", ".md", ".safetensors"}
"""Kinds of files that belong into an image."""


PYTHONS = ("3.10", "3.11", "3.12")


def copied(dockerfile: str) -> list[list[str]]:
    """The sources of each COPY from the folder, globs as they stand."""
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
    """They are installed before anything else of the folder is there."""
    lines = requirements("requirements.txt")
    assert lines
    for line in lines:
        assert Requirement(line).url is None


def test_only_image_material_is_left_of_a_folder_in_use(
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
    # Its list takes out bytecode of the folder itself alone.
    left = {path for path in context(folder, ignored) if path.suffix != ".pyc"}
    assert left == {path.relative_to(folder) for path in files(folder) if path.suffix in MATERIAL}
    assert left == {path.relative_to(FOLDER) for path in tracked(FOLDER)}


def context(folder: Path, patterns: list[str]) -> Iterator[Path]:
    """What Docker sends, by its rule that patterns without `**/` are those of the root."""
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
    """The folder's files in git's eyes, new ones included; in an export without git, all."""
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


def requirements(name: str) -> list[str]:
    direct = (FOLDER / name).read_text().partition("# --- As tested: ")[0]
    lines = (line.split("#")[0].strip() for line in direct.splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def locked(python: str) -> dict[str, str]:
    """The lock's versions for one Python on this kind of machine."""
    environment = {**default_environment(), "python_version": python}
    environment["python_full_version"] = f"{python}.9"
    pins = [Requirement(line) for line in requirements("requirements.lock")]
    chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    assert len({pin.name for pin in chosen}) == len(chosen)
    return {pin.name: str(pin.specifier).removeprefix("==") for pin in chosen}


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_keeps_to_the_requirements(python: str) -> None:
    versions = locked(python)
    for line in requirements("requirements.txt"):
        wanted = Requirement(line)
        assert wanted.specifier.contains(versions[wanted.name.replace("_", "-")]), line


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_installs_from_wheels(python: str) -> None:
    """By uv: pip would read the markers for the Python it runs in, and download every wheel."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    uv = shutil.which("uv", path=path) or "uv"
    command = [uv, "pip", "compile", str(FOLDER / "requirements.lock")]
    command += ["--python-version", python, "--python-platform", "linux", "--only-binary", ":all:"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Failed to fetch" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    found = (Requirement(line) for line in done.stdout.splitlines())
    assert {pin.name: str(pin.specifier).removeprefix("==") for pin in found} == locked(python)
