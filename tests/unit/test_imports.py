"""Imports of the package go one way, and each part knows only what it has to."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT

PACKAGE = ROOT / "tinyvit" / "timm_runtime"
LAYERS = [
    {"errors", "memory"},
    {"image_headers", "unpacking"},
    {
        "settings",
        "engines.base",
        "engines.cpu",
        "engines.openvino_import",
        "images",
        "idle_threads",
    },
    {"two_step_resize"},
    {"transforms", "metrics", "checkpoint", "unheard_settings", "decode_budget"},
    {"exported", "decoders", "engines.torch_lanes"},
    {"hub", "network", "engines.openvino_engine", "engines.torch_engine"},
    {"converter"},
    {"export"},
    {"engines.factory"},
    {"batcher"},
    {"pipeline"},
    {"codec"},
    {"binary_tensors"},
    {"rest", "rpc"},
    {"mlserver_patches"},
]
"""From the lowest to the highest: a module imports from layers below its own only; image_headers/,
rest/, rpc/ and mlserver_patches/ stand for all of their modules."""

OF_MLSERVER = {"errors", "types", "codecs", "settings"}
"""Parts of MLServer that any module may import: its errors and its data."""

KNOW_MLSERVER = ("rest", "rpc", "mlserver_patches")
HTTP = {"fastapi", "starlette", "uvicorn", "grpc", "requests"}


def modules() -> dict[str, Path]:
    """By dotted name below the package; packages by their own name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


MODULES = modules()


def imported(name: str) -> Iterator[str]:
    """What a module imports: its own package's modules as `.name`, others by their dotted name."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if name else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                yield "." + (whole if whole in MODULES else ".".join(base))


def own(name: str) -> set[str]:
    return {each[1:] for each in imported(name) if each.startswith(".")}


def layer(name: str) -> int:
    area = name.partition(".")[0]
    for i, names in enumerate(LAYERS):
        if name in names or area in names:
            return i
    raise AssertionError(f"{name} has no layer")


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"", "engines"}))
def test_no_module_imports_one_above_it(name: str) -> None:
    area = name.partition(".")[0]
    for other in own(name):
        within = area in (*KNOW_MLSERVER, "image_headers") and other.partition(".")[0] == area
        assert within or layer(other) < layer(name), f"{name} imports {other}"


def test_no_circle() -> None:
    """Within rest/ and mlserver_patches/ neither, whose own order is not written down."""
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in own(name) - {name}:
                visit(other, (*above, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("name", sorted(set(MODULES) - {""}))
def test_only_rest_rpc_and_patches_know_mlserver(name: str) -> None:
    """Besides serve-model.py; the others raise its errors and read its data."""
    if name.partition(".")[0] in KNOW_MLSERVER:
        return
    for module in imported(name):
        parts = module.split(".")
        assert parts[0] not in HTTP, f"{name} imports {module}"
        assert parts[0] != "mlserver" or parts[1] in OF_MLSERVER, f"{name} imports {module}"


def test_engines_know_nothing_of_requests() -> None:
    for name in (each for each in MODULES if each.startswith("engines")):
        assert not {"codec", "metrics", "batcher", "pipeline", "images", "rest"} & {
            other.partition(".")[0] for other in own(name)
        }


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_of_the_package_are_relative_and_at_the_top(name: str) -> None:
    """A lazy one would be answered by whichever copy of the package was imported last."""
    tree = ast.parse(MODULES[name].read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for inner in ast.walk(node):
                assert not (isinstance(inner, ast.ImportFrom) and inner.level), node.name
    assert not any(module.partition(".")[0] == "timm_runtime" for module in imported(name))


def test_nothing_of_ours_besides_the_package_can_be_imported() -> None:
    assert [path.name for path in (ROOT / "tinyvit").glob("*.py")] == ["serve-model.py"]
    folders = [path for path in (ROOT / "tinyvit").iterdir() if any(path.glob("*.py"))]
    assert folders == [PACKAGE]


def test_serve_model_is_short() -> None:
    assert len((ROOT / "tinyvit" / "serve-model.py").read_text().splitlines()) <= 60
