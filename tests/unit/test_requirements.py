"""Requirements are complete and locked."""

import ast
import json
import re
import sys
from collections import defaultdict
from importlib.metadata import distributions, requires, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT, RUNTIME
from tests.support.pins import AS_TESTED, PYTHONS, requirements
from tests.support.programs import UV, output_of


def named(path: Path) -> dict[str, list[Requirement]]:
    """Return requirements by name; a lock may have one for each range of Pythons."""
    by_name: dict[str, list[Requirement]] = {}
    for requirement in requirements(path):
        by_name.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return by_name


DIRECT = named(RUNTIME / "requirements.txt")
LOCKED = named(RUNTIME / "requirements.lock")
SERVED_BY = named(RUNTIME / "requirements-serve.txt")
SERVE_LOCKED = named(RUNTIME / "requirements-serve.lock")


def imports(path: Path) -> set[str]:
    """Return the top-level names of all modules that a file imports."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(str(node.module).partition(".")[0])
    return modules


CODE = [*sorted(RUNTIME.rglob("*.py")), *sorted((ROOT / "client").glob("*.py"))]
INDIRECT = {
    "fastapi": "mlserver",
    "pydantic": "mlserver",
    "starlette": "fastapi",
    "anyio": "starlette",
    "prometheus-client": "starlette-exporter",
    "urllib3": "requests",
    "uvicorn": "mlserver",
    "orjson": "mlserver",
    "protobuf": "mlserver",
}
"""Imported packages that a requirement brings in the version that it needs."""


def test_imports_are_required() -> None:
    """A package that is only an indirect dependency may vanish with an update."""
    own = {"mlserver_timm", "client", *(path.stem for path in CODE)}
    packages = defaultdict(set)  # packages_distributions of Python 3.10 does not know all of them
    for distribution in distributions():
        name = canonicalize_name(distribution.name)
        for line in (distribution.read_text("RECORD") or "").splitlines():
            module = re.split("[/,]", line)[0].removesuffix(".py")
            packages[module].add(name)
    for path in CODE:
        for module in imports(path) - own - set(sys.stdlib_module_names):
            assert packages[module] & {*DIRECT, *INDIRECT}, f"{path}: {module} is not required"


def needs(package: str) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requires(package) or []}


@pytest.mark.parametrize("package", INDIRECT)
def test_indirect_requirements(package: str) -> None:
    owner = INDIRECT[package]
    assert package in needs(owner)
    assert owner in {*DIRECT, *needs("mlserver"), *INDIRECT}


def test_lock_fits_the_requirements() -> None:
    for name, (requirement,) in DIRECT.items():
        assert name in LOCKED, name
        for locked in LOCKED[name]:
            (pin,) = locked.specifier
            assert pin.operator == "=="
            assert requirement.specifier.contains(pin.version, prereleases=True), locked


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_is_one_version_each(python: str) -> None:
    """The lock has exact versions for every supported Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    for name, locked in LOCKED.items():
        fitting = [r for r in locked if not r.marker or r.marker.evaluate(environment)]
        assert len(fitting) <= 1, name
        assert all(str(r.specifier).startswith("==") for r in fitting)
        assert fitting or name not in DIRECT, name


MARKERS = {
    "linux": {"sys_platform": "linux", "platform_machine": "x86_64"},
    "aarch64-apple-darwin": {"sys_platform": "darwin", "platform_machine": "arm64"},
}
"""Values of the locks' markers, by uv's names of platforms."""


@pytest.mark.slow
@pytest.mark.parametrize("platform", MARKERS)
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-serve.lock"])
def test_locks_install_from_wheels(platform: str, lock: str, python: str) -> None:
    """Every pin has a wheel, and no package needs one that is not pinned; gevent has no wheel for
    macOS and older Pythons in newer versions."""
    command = [UV, "pip", "compile", RUNTIME / lock, "--no-python-downloads"]
    command += ["--python-platform", platform, "--python-version", python]
    command += ["--only-binary", ":all:", "--no-annotate", "--no-header", "--no-emit-index-url"]
    resolved = output_of(*command, timeout=None).splitlines()
    versions = {"python_version": python, "python_full_version": f"{python}.9"}
    pins = [
        f"{pin.name}{pin.specifier}"
        for pin in requirements(RUNTIME / lock)
        if pin.marker is None or pin.marker.evaluate(MARKERS[platform] | versions)
    ]
    assert sorted(resolved) == sorted(pins)
    names = {line.partition("==")[0] for line in resolved}
    assert {"mlserver", "openvino", "msgspec", "uvloop"} <= names


def test_lock_for_serving_is_a_part_of_the_other() -> None:
    """Both have the same versions; the one for serving lacks torch and timm."""
    assert SERVED_BY.keys() <= SERVE_LOCKED.keys()
    for name, locked in SERVE_LOCKED.items():
        assert {str(pin) for pin in locked} <= {str(pin) for pin in LOCKED[name]}
    assert not {"torch", "torchvision", "timm", "huggingface-hub"} & SERVE_LOCKED.keys()


def test_what_serving_needs_is_among_the_direct_dependencies() -> None:
    """Equal lines, since `mlserver build` copies only requirements.txt before it installs."""
    direct = (RUNTIME / "requirements.txt").read_text().partition(AS_TESTED)[0].splitlines()
    serving = (RUNTIME / "requirements-serve.txt").read_text().partition("\n\n")[2].splitlines()
    assert serving
    assert set(serving) <= set(direct)
    assert not any(line.startswith("-") for line in direct)


def test_mlserver_build_installs_the_lock() -> None:
    pins = (RUNTIME / "requirements.txt").read_text().partition(AS_TESTED)[2].splitlines()[1:]
    lock = (RUNTIME / "requirements.lock").read_text().splitlines()
    assert pins == [line for line in lock if not line.lstrip().startswith("#")]


def test_what_is_installed_is_locked() -> None:
    """Tests only prove the lock if they run with it."""
    for name in DIRECT:
        fitting = [r for r in LOCKED[name] if not r.marker or r.marker.evaluate()]
        assert fitting and fitting[0].specifier.contains(version(name), prereleases=True), name


def test_conda_environment() -> None:
    """It installs the same packages by pip, on a supported Python."""
    environment = yaml.safe_load((ROOT / "env.yaml").read_text())
    assert environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    assert "pip" in conda
    (python,) = (entry for entry in conda if entry.startswith("python="))
    assert python.removeprefix("python=") in PYTHONS
    files = [ROOT / re.sub(r"^-[rc] ", "", entry) for entry in pip["pip"]]
    assert RUNTIME / "requirements.lock" in files
    assert set(files) <= {RUNTIME / "requirements.lock", RUNTIME / "requirements.txt"}
    assert any(entry.startswith("-r ") for entry in pip["pip"])


def test_pythons() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (bounds,) = re.findall(r'^requires-python = "(.*)"$', text, re.M)
    assert all(SpecifierSet(bounds).contains(python) for python in PYTHONS)
    assert not SpecifierSet(bounds).contains("3.13") and not SpecifierSet(bounds).contains("3.9")


def test_settings_as_shipped() -> None:
    """MLServer ignores model settings in the server's file."""
    server = json.loads((RUNTIME / "settings.json").read_text())
    model = json.loads((RUNTIME / "model-settings.json").read_text())
    assert not {"max_batch_size", "max_batch_time"} & set(server)
    assert {"max_batch_size", "max_batch_time"} <= set(model)
    assert "uri" not in model["parameters"], "it would override MLSERVER_MODEL_URI"
