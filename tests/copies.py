"""A repository with two edited copies of the runtime's folder, and somebody else's model."""

import json
import shutil
from pathlib import Path
from typing import Any

from checkpoints import NAMES
from conftest import ROOT

PROBE = """
import sys
from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import StringCodec
from mlserver.handlers import custom_handler
from mlserver.types import InferenceRequest, InferenceResponse

REPOSITORY = Path(__file__).resolve().parents[1]


def modules():
    found = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    return sorted(name for name, file in found.items() if file and REPOSITORY in Path(file).parents)


class Probe(MLModel):
    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        outputs = [StringCodec.encode_output("modules", modules())]
        return InferenceResponse(model_name=self.name, outputs=outputs)

    @custom_handler(rest_path="/modules", rest_method="GET")
    async def of_the_server(self) -> list:
        return modules()
"""
"""Tells which modules of the repository are imported, in the server and where models run."""


def make_repository(root: Path, small_checkpoint: Path, workers: int = 0) -> Path:
    """`first` serves the sample, five labels; `second`, with other code, three classes, two
    labels."""
    root.mkdir()
    (root / "settings.json").write_text(json.dumps({"debug": False, "parallel_workers": workers}))
    for name in ("first", "second"):
        copy = shutil.copytree(
            ROOT / "tinyvit", root / name, ignore=shutil.ignore_patterns("__pycache__")
        )
        (Path(copy) / "settings.json").unlink()
        change_settings(root / name, name=name)
    change_settings(root / "second", parameters={"uri": str(small_checkpoint)})
    set_default_top_k(root / "second", 2)
    edit(root / "second", "There is no output", "The second copy has no output")
    (root / "probe").mkdir()
    (root / "probe" / "probe.py").write_text(PROBE)
    settings = {"name": "probe", "implementation": "probe.Probe"}
    (root / "probe" / "model-settings.json").write_text(json.dumps(settings))
    return root


def change_settings(folder: Path, **values: Any) -> None:
    path = folder / "model-settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def set_default_top_k(folder: Path, k: int) -> None:
    """By the code of one copy."""
    before = (folder / "timm_runtime" / "codec.py").read_text().split("DEFAULT_TOP_K = ")[1][0]
    edit(folder, f"DEFAULT_TOP_K = {before}", f"DEFAULT_TOP_K = {k}")


def edit(folder: Path, old: str, new: str) -> None:
    """Changes a copy's codec.py."""
    path = folder / "timm_runtime" / "codec.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


LABELS_OF_SECOND = set(NAMES)
