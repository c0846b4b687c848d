"""How patches are applied: where they are needed, once, and loudly where they do not fit."""

import re
from pathlib import Path
from types import ModuleType

import mlserver
import pytest
from mlserver.handlers import DataPlane
from packaging.specifiers import SpecifierSet

from mlserver_timm.server import patches as mlserver_patches
from mlserver_timm.server.patches.replacing import PatchDoesNotFit, replace
from tests.support.clients import workers
from tests.support.probes import OTHER, OURS, repository
from tests.support.servers import Serve

FOLDER = Path(mlserver_patches.__file__).parent
PATCHES = sorted(
    {
        *mlserver_patches.IN_THE_SERVER,
        *mlserver_patches.WITH_WORKERS,
        *mlserver_patches.IN_A_WORKER,
    },
    key=lambda patch: patch.__name__,
)
STEMS = [patch.__name__.rpartition(".")[2] for patch in PATCHES]
LINE = re.compile(r"MLServer \S+ is patched: ([\w, ]+)\.")


@pytest.mark.parametrize("patch", PATCHES, ids=STEMS)
def test_patch_says_what_it_is_for(patch: ModuleType) -> None:
    assert re.fullmatch(r"[^.]+(\S\.\S[^.]*)*\.", patch.FAULT), "one sentence"
    stem = patch.__name__.rpartition(".")[2]
    test = f"tests/patches/test_{stem}.py"
    assert patch.UPSTREAM.startswith("https://") or f"unreported; {test}" == patch.UPSTREAM
    assert SpecifierSet(patch.AFFECTS).contains(mlserver.__version__)
    assert not SpecifierSet(patch.AFFECTS).contains("1.8.0")
    assert (Path(__file__).parent / f"test_{stem}.py").exists()
    assert f"| `{stem}` |" in (FOLDER / "README.md").read_text()


def test_every_file_is_applied_somewhere() -> None:
    others = {"__init__", "processes", "replacing"}
    assert {path.stem for path in FOLDER.glob("*.py")} - others == set(STEMS)


def test_patch_that_does_not_fit() -> None:
    with pytest.raises(PatchDoesNotFit, match=r"has no DataPlane\.read_minds, which mlserver_timm"):
        replace(DataPlane, "read_minds", None)
    assert not hasattr(DataPlane, "read_minds")


def test_server_stops_where_a_patch_does_not_fit(serve: Serve, tmp_path: Path) -> None:
    edits = {"readiness": ('"model_ready"', '"model_is_ready"')}
    server = serve(folder=repository(tmp_path, OURS, edits=edits), ready=False)
    assert server.process.wait(60) == 1
    assert "has no DataPlane.model_is_ready" in server.output().rstrip().splitlines()[-1]


def applied(output: str) -> list[list[str]]:
    return [names.split(", ") for names in LINE.findall(output)]


def stems(patches: tuple[ModuleType, ...]) -> list[str]:
    return [patch.__name__.rpartition(".")[2] for patch in patches]


def test_patches_for_workers_only_with_workers(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, OTHER))
    assert applied(server.output()) == [stems(mlserver_patches.IN_THE_SERVER)]
    server.stop()
    server = serve(folder=repository(tmp_path, OURS, OTHER, workers=1))
    in_main, in_worker = applied(server.output())
    assert in_main == stems(mlserver_patches.IN_THE_SERVER + mlserver_patches.WITH_WORKERS)
    assert in_worker == stems(mlserver_patches.IN_A_WORKER)
    assert len(workers(server)) == 1


def test_other_version_is_left_alone(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, without="readiness"))
    [names] = applied(server.output())
    assert "readiness" not in names and "graceful_stop" in names
