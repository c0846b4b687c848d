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

import conversion
import engine
from checkpoint import CheckpointError, Source
from conftest import ROOT
from conversion import Converted, convert
from crops import SOURCE
from truth import TOLERANCE, make_checkpoint, truth

PROGRAM = f"""
import json, logging, sys, pathlib
import numpy as np
sys.path.insert(0, {str(ROOT / "tinyvit")!r})
from checkpoint import Source
from engine import create_engine

logging.basicConfig(level=logging.INFO)
folder, cache = map(pathlib.Path, sys.argv[1:])
engine, description = create_engine("openvino", Source(folder, "it"), "fp32", 1, cache, 4)
size = description.input_size
pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
print(json.dumps({{"answer": engine(pixels).tolist(), "torch": "torch" in sys.modules}}))
"""


def started(folder: Path, cache: Path) -> "subprocess.Popen[str]":
    """A process like a server that comes up."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process: "subprocess.Popen[str]") -> tuple[dict[str, Any], str]:
    output, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    return json.loads(output), log


def assert_true(answer: dict[str, Any], folder: Path, size: int = 64) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    wanted = [truth(folder).probabilities(Image.fromarray(one)) for one in pixels]
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
    """The cache after two processes have converted the same network at once."""
    cache = tmp_path_factory.mktemp("filled")
    for process in [started(small, cache), started(small, cache)]:
        assert_true(outcome(process)[0], small)
    return cache


@pytest.fixture
def cache(filled: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(filled, tmp_path / "cache"))


def kept(cache: Path) -> Path:
    """The one folder in the cache."""
    (folder,) = cache.iterdir()
    assert {p.name for p in folder.iterdir()} == {"model.xml", "model.bin", "description.json"}
    return folder


def test_later_starts_do_without_torch(small: Path, cache: Path) -> None:
    """Neither the conversion nor its gigabyte again."""
    answer, log = outcome(started(small, cache))
    assert "Converting" not in log
    assert not answer["torch"]
    assert_true(answer, small)


def test_conversion_stays_outside(small: Path, tmp_path: Path) -> None:
    """The first start converts in a process of its own, and leaves nothing else behind."""
    answer, log = outcome(started(small, tmp_path / "new" / "cache"))
    assert "Converting" in log
    assert not answer["torch"]
    assert_true(answer, small)
    kept(tmp_path / "new" / "cache")


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
    del content["labels"]
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
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen(cache: Path, damage: str) -> None:
    assert Converted(kept(cache)).read() is not None
    DAMAGES[damage](kept(cache))
    assert Converted(next(cache.iterdir())).read() is None


@pytest.mark.parametrize("damage", ["byte in the weights", "no graph"])
def test_damage_is_mended(
    small: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](kept(cache))
    with caplog.at_level(logging.INFO, "mlserver.tinyvit"):
        model, description = convert(Source(small, "it"), cache)
    assert "Converting" in caplog.text
    assert description.labels == ["a", "b", "c"]
    assert Converted(kept(cache)).read() is not None
    assert_true({"answer": run(model)}, small)


def run(model: Any) -> Any:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    return engine.OpenVINOEngine(model, "fp32", 1, 2, 1).in_stream(pixels)


def test_cache_that_cannot_be_written(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file is where its folder should be: done without, with a warning."""
    (tmp_path / "file").write_text("in the way")
    model, _ = convert(Source(small, "it"), tmp_path / "file" / "cache")
    assert "cannot be kept" in caplog.text
    assert_true({"answer": run(model)}, small)


def test_other_weights_are_converted_anew(small: Path, cache: Path, tmp_path: Path) -> None:
    """However alike the checkpoint looks."""
    other = Path(shutil.copytree(small, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["classifier.bias"][0] += 3
    save_file(weights, other / "model.safetensors")
    before = kept(cache)
    model, _ = convert(Source(other, "it"), cache)
    assert_true({"answer": run(model)}, other)
    assert len(list(cache.iterdir())) == 2
    assert Converted(before).read() is not None


def test_key(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of everything the conversion depends on; the name and place of the checkpoint are not."""
    key = conversion._key(Source(small, "it"))
    assert key == conversion._key(Source(small, "by another name"))
    assert key != conversion._key(SOURCE)
    monkeypatch.setattr(conversion, "version", lambda name: f"{name} of tomorrow")
    assert key != conversion._key(Source(small, "it"))


def test_conversion_that_fails(small: Path, tmp_path: Path) -> None:
    """The sentence comes through from the other process, and nothing is kept."""
    broken = Path(shutil.copytree(small, tmp_path / "broken"))
    os.truncate(broken / "model.safetensors", 1000)
    with pytest.raises(CheckpointError, match="cannot be loaded") as failure:
        convert(Source(broken, "it"), tmp_path / "cache")
    assert str(broken) in str(failure.value) and "\n" not in str(failure.value)
    assert not list((tmp_path / "cache").iterdir())
