"""A converted checkpoint is what timm computes, from every state of the cache."""

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
from tests.support.checkpoints import assert_one_sentence
from tests.support.crops import CHECKPOINT
from tests.support.paths import ROOT
from tests.support.timm_reference import TOLERANCE, make_checkpoint, timm_reference

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
size = description.input_size
pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
answer = engine.infer_latency(pixels, ["probabilities"])["probabilities"]
print(json.dumps({{"answer": answer.tolist(), "torch": "torch" in sys.modules}}))
"""


def started(folder: Path, cache: Path, max_file: int | None = None) -> "subprocess.Popen[str]":
    """A process like a server that comes up; on a disk that takes no larger files."""
    limit = f"ulimit -f {max_file // 1024}; " if max_file else ""
    command = f'{limit}exec "$0" "$@"'
    return subprocess.Popen(
        ["bash", "-c", command, sys.executable, "-c", PROGRAM, str(folder), str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process: "subprocess.Popen[str]") -> tuple[dict[str, Any], str]:
    output, log = process.communicate(timeout=400)
    assert process.returncode == 0, log
    return json.loads(output), log


def assert_timms_answers(answer: dict[str, Any], folder: Path, size: int = 64) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    wanted = [timm_reference(folder).probabilities(Image.fromarray(one)) for one in pixels]
    np.testing.assert_allclose(answer["answer"], wanted, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is converted quickly."""
    return make_checkpoint(
        tmp_path_factory.mktemp("small") / "small",
        preprocessing={"input_size": (3, 64, 64), "crop_pct": 1.0},
        label_names=["a", "b", "c"],
    )


@pytest.fixture(scope="module")
def filled(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache after two processes have converted the same network at once, each in another
    process."""
    cache = tmp_path_factory.mktemp("filled") / "new" / "cache"
    outcomes = [outcome(process) for process in [started(small, cache), started(small, cache)]]
    for answer, _ in outcomes:
        assert not answer["torch"]
        assert_timms_answers(answer, small)
    assert any("Converting" in log for _, log in outcomes), "one may have come too late"
    return cache


@pytest.fixture
def cache(filled: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(filled, tmp_path / "cache"))


def kept(cache: Path) -> Path:
    """The one folder in the cache."""
    (folder,) = cache.iterdir()
    assert {path.name for path in folder.iterdir()} == {*FILES, SUMS}
    return folder


def test_later_starts_do_without_torch(small: Path, cache: Path) -> None:
    """Neither the conversion nor its gigabyte again."""
    answer, log = outcome(started(small, cache))
    assert "Converting" not in log
    assert not answer["torch"]
    assert_timms_answers(answer, small)


def flip(name: str, at: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(at * (len(content) - 1))] ^= 1
        (folder / name).write_bytes(content)

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def forget_labels(folder: Path) -> None:
    content = json.loads((folder / "description.json").read_text())
    del content["description"]["labels"]
    (folder / "description.json").write_text(json.dumps(content))


DAMAGES = {
    "first byte of the weights": flip("model.bin", 0),
    "byte in the weights": flip("model.bin", 0.5),
    "last byte of the weights": flip("model.bin", 1),
    "byte in the graph": flip("model.xml", 0.5),
    "half the graph": truncate("model.xml"),
    "half the weights": truncate("model.bin"),
    "no graph": remove("model.xml"),
    "no weights": remove("model.bin"),
    "no description": remove("description.json"),
    "empty description": write("description.json", b""),
    "description of garbage": write("description.json", b"\xff\x00{"),
    "description of another kind": write("description.json", b"[]"),
    "description without labels": forget_labels,
    "no card": remove("README.md"),
    "no digests": remove("SHA256SUMS"),
    "empty digests": write("SHA256SUMS", b""),
    "digests of garbage": write("SHA256SUMS", b"\xff\x00  model.bin"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen(cache: Path, damage: str) -> None:
    folder = kept(cache)
    ExportedModel(folder).read()
    DAMAGES[damage](folder)
    with pytest.raises(CheckpointError) as failure:
        ExportedModel(folder).read()
    assert str(folder) in str(failure.value)
    assert_one_sentence(failure.value)


@pytest.mark.parametrize("damage", ["byte in the weights", "no graph"])
def test_damage_is_mended(
    small: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](kept(cache))
    with caplog.at_level(logging.INFO, "mlserver.tinyvit"):
        model, description = convert(Checkpoint(small, "it"), cache)
    assert "Converting" in caplog.text
    assert description.labels == ["a", "b", "c"]
    assert caplog.text.count("Converting") == 1
    ExportedModel(kept(cache)).read()
    assert_timms_answers({"answer": run(model)}, small)


def run(model: Any) -> Any:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    engine = OpenVINOEngine(model, "fp32", 1, 2, 1)
    return engine.infer_throughput(pixels, [PROBABILITIES])[PROBABILITIES]


def test_cache_that_cannot_be_written(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file is where its folder should be: done without, with a warning."""
    (tmp_path / "file").write_text("in the way")
    model, _ = convert(Checkpoint(small, "it"), tmp_path / "file" / "cache")
    assert "cannot be kept" in caplog.text
    assert_timms_answers({"answer": run(model)}, small)


def test_disk_that_is_full(small: Path, tmp_path: Path) -> None:
    """The network does not fit on it: done without, and nothing unfinished is left."""
    cache = tmp_path / "cache"
    answer, log = outcome(started(small, cache, max_file=512 * 1024))
    assert "cannot be kept" in log
    assert_timms_answers(answer, small)
    assert not list(cache.iterdir())


def test_other_weights_are_converted_anew(small: Path, cache: Path, tmp_path: Path) -> None:
    """However alike the checkpoint looks."""
    other = Path(shutil.copytree(small, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["classifier.bias"][0] += 3
    save_file(weights, other / "model.safetensors")
    before = kept(cache)
    model, _ = convert(Checkpoint(other, "it"), cache)
    assert_timms_answers({"answer": run(model)}, other)
    assert len(list(cache.iterdir())) == 2
    ExportedModel(before).read()


def test_key(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of everything the conversion depends on; the name and place of the checkpoint are not."""
    key = export._key(Checkpoint(small, "it"))
    assert key == export._key(Checkpoint(small, "by another name"))
    assert key != export._key(CHECKPOINT)
    monkeypatch.setattr(export, "version", lambda name: f"{name} of tomorrow")
    assert key != export._key(Checkpoint(small, "it"))


def test_conversion_that_fails(small: Path, tmp_path: Path) -> None:
    """The sentence comes through from the other process, and nothing is kept."""
    broken = Path(shutil.copytree(small, tmp_path / "broken"))
    os.truncate(broken / "model.safetensors", 1000)
    with pytest.raises(CheckpointError, match="cannot be loaded") as failure:
        convert(Checkpoint(broken, "it"), tmp_path / "cache")
    assert str(broken) in str(failure.value) and "\n" not in str(failure.value)
    assert not list((tmp_path / "cache").iterdir())
