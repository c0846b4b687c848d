"""The cache holds what timm computes, or the checkpoint is converted again."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from mlserver_timm.checkpoints import export
from mlserver_timm.checkpoints.checkpoint import Checkpoint
from mlserver_timm.checkpoints.export import convert
from mlserver_timm.checkpoints.exported import FILES, SUMS, ExportedModel
from mlserver_timm.checkpoints.network import PROBABILITIES
from mlserver_timm.errors import CheckpointError
from mlserver_timm.inference.engines.openvino_engine import OpenVINOEngine
from tests.support.checkpoints import NAMES, assert_one_sentence
from tests.support.crops import CHECKPOINT
from tests.support.paths import ROOT
from tests.support.timm_reference import TOLERANCE, timm_reference

pytestmark = pytest.mark.slow

PROGRAM = f"""
import json, logging, sys, pathlib
import numpy as np
sys.path.insert(0, {str(ROOT / "tinyvit")!r})
from mlserver_timm.checkpoints.checkpoint import Checkpoint
from mlserver_timm.inference.engines.factory import create_engine
from mlserver_timm.settings import RuntimeSettings

logging.basicConfig(level=logging.INFO)
folder, cache = map(pathlib.Path, sys.argv[1:])
settings = RuntimeSettings(engine="openvino", cache_dir=cache)
engine, description = create_engine(Checkpoint(folder, "it"), settings, 1, 4)
pixels = np.random.default_rng(0).integers(0, 256, (2, *description.input_size, 3), np.uint8)
scores = engine.infer_latency(pixels, ["probabilities"])["probabilities"]
print(json.dumps({{"scores": scores.tolist(), "torch": "torch" in sys.modules}}))
"""


def start(folder: Path, cache: Path) -> "subprocess.Popen[str]":
    """Start a process that creates an engine."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder, cache],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_scores(process: "subprocess.Popen[str]", folder: Path) -> str:
    """Assert that the process computed timm's scores without torch; return its log."""
    output, log = process.communicate(timeout=400)
    assert process.returncode == 0, log
    result = json.loads(output)
    np.testing.assert_allclose(result["scores"], reference(folder), rtol=0, atol=TOLERANCE)
    assert not result["torch"]
    return log


def assert_model(model: Any, folder: Path) -> None:
    """Assert that an OpenVINO model computes timm's scores."""
    engine = OpenVINOEngine(model, "fp32", 1, 2, 1)
    scores = engine.infer_throughput(pixels(), [PROBABILITIES])[PROBABILITIES]
    np.testing.assert_allclose(scores, reference(folder), rtol=0, atol=TOLERANCE)


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)


def reference(folder: Path) -> list[np.ndarray]:
    return [timm_reference(folder).probabilities(Image.fromarray(image)) for image in pixels()]


@pytest.fixture(scope="module")
def filled(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache after two processes have converted one checkpoint at the same time."""
    cache = tmp_path_factory.mktemp("filled") / "new" / "cache"
    processes = [start(small_checkpoint, cache) for _ in range(2)]
    logs = [assert_scores(process, small_checkpoint) for process in processes]
    assert "Converting" in "".join(logs)
    return cache


@pytest.fixture
def cache(filled: Path, tmp_path: Path) -> Path:
    """A copy that the test may break."""
    return shutil.copytree(filled, tmp_path / "cache")


def cached(cache: Path) -> Path:
    """Return the only folder in the cache."""
    (folder,) = cache.iterdir()
    assert {path.name for path in folder.iterdir()} == {*FILES, SUMS}
    return folder


def test_later_start_does_not_convert(small_checkpoint: Path, cache: Path) -> None:
    assert "Converting" not in assert_scores(start(small_checkpoint, cache), small_checkpoint)


def flip(name: str, at: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(at * (len(content) - 1))] ^= 1
        (folder / name).write_bytes(content)

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def remove_labels(folder: Path) -> None:
    content = json.loads((folder / "description.json").read_text())
    del content["description"]["labels"]
    (folder / "description.json").write_text(json.dumps(content))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "first byte of the weights": flip("model.bin", 0),
    "last byte of the weights": flip("model.bin", 1),
    "byte in the graph": flip("model.xml", 0.5),
    "half the weights": lambda folder: os.truncate(folder / "model.bin", 100_000),
    "no graph": lambda folder: (folder / "model.xml").unlink(),
    "no card": lambda folder: (folder / "README.md").unlink(),
    "empty description": write("description.json", b""),
    "description is not text": write("description.json", b"\xff\x00{"),
    "description is a list": write("description.json", b"[]"),
    "description without labels": remove_labels,
    "no digests": lambda folder: (folder / "SHA256SUMS").unlink(),
    "digests are not text": write("SHA256SUMS", b"\xff\x00  model.bin"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_detected(cache: Path, damage: str) -> None:
    folder = cached(cache)
    ExportedModel(folder).read()
    DAMAGES[damage](folder)
    with pytest.raises(CheckpointError) as failure:
        ExportedModel(folder).read()
    assert str(folder) in str(failure.value)
    assert_one_sentence(failure.value)


def test_damage_is_repaired(
    small_checkpoint: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES["no graph"](cached(cache))
    with caplog.at_level(logging.INFO, "mlserver.tinyvit"):
        model, description = convert(Checkpoint(small_checkpoint, "it"), cache)
    assert caplog.text.count("Converting") == 1
    assert description.labels == NAMES
    ExportedModel(cached(cache)).read()
    assert_model(model, small_checkpoint)


def test_cache_cannot_be_written(
    small_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file is in the place of its folder: convert without a cache, and warn."""
    (tmp_path / "file").write_text("in the way")
    model, _ = convert(Checkpoint(small_checkpoint, "it"), tmp_path / "file" / "cache")
    assert "cannot be kept" in caplog.text
    assert_model(model, small_checkpoint)


def test_other_weights_are_converted(small_checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    """Even if they have the same name and size."""
    other = shutil.copytree(small_checkpoint, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["classifier.bias"][0] += 3
    save_file(weights, other / "model.safetensors")
    first = cached(cache)
    model, _ = convert(Checkpoint(other, "it"), cache)
    assert_model(model, other)
    assert len(list(cache.iterdir())) == 2
    ExportedModel(first).read()


def test_key(small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It depends on weights and versions, but not on the checkpoint's name."""
    key = export._key(Checkpoint(small_checkpoint, "it"))
    assert key == export._key(Checkpoint(small_checkpoint, "by another name"))
    assert key != export._key(CHECKPOINT)
    monkeypatch.setattr(export, "version", lambda name: f"{name} of tomorrow")
    assert key != export._key(Checkpoint(small_checkpoint, "it"))
