"""Peers are compared on equal terms: the same libraries, pixels, network and answers."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from timm_runtime.checkpoint import Checkpoint
from timm_runtime.export import export
from timm_runtime.images import EncodedImage
from timm_runtime.transforms import EvaluationTransform

from conftest import ROOT
from truth import make_checkpoint

PEERS = ROOT / "benchmarks" / "peers"
LOCKS = sorted(PEERS.glob("*/requirements.lock"))
PICTURES = ("cat.jpg", "coffee.jpg")


@pytest.fixture(scope="module")
def classifier() -> ModuleType:
    """What all peers share, which leaves this process' modules as they were."""
    known = sys.modules.get("openvino_telemetry")
    spec = importlib.util.spec_from_file_location("classifier", PEERS / "classifier.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if known is None:
        del sys.modules["openvino_telemetry"]
    else:
        sys.modules["openvino_telemetry"] = known
    return module


def pins(lock: Path, package: str) -> set[str]:
    return set(re.findall(rf"^{package}==.*$", lock.read_text(), re.M))


@pytest.mark.parametrize("package", ["openvino", "pillow"])
@pytest.mark.parametrize("lock", LOCKS, ids=[lock.parent.name for lock in LOCKS])
def test_same_versions(lock: Path, package: str) -> None:
    assert pins(lock, package) == pins(ROOT / "tinyvit" / "requirements.lock", package) != set()


def test_every_peer_has_a_lock() -> None:
    assert {lock.parent.name for lock in LOCKS} == {
        "fastapi-openvino",
        "litserve-openvino",
        "mosec-openvino",
        "triton-openvino",
    }
    assert {path.parent for path in PEERS.glob("*/requirements.txt")} == {p.parent for p in LOCKS}


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize(("size", "crop_pct"), [(224, 0.875), (224, 0.95), (64, 1.0)])
def test_same_pixels(
    classifier: ModuleType, tmp_path: Path, picture: str, size: int, crop_pct: float
) -> None:
    jpeg = (ROOT / "imgs" / picture).read_bytes()
    checkpoint = make_checkpoint(
        tmp_path / "made",
        preprocessing={
            "input_size": (3, size, size),
            "crop_pct": crop_pct,
            "interpolation": "bicubic",
        },
    )
    export(Checkpoint(checkpoint, "made"), tmp_path / "exported")
    peer = classifier.Classifier(str(tmp_path / "exported"), streams=1, threads=1)
    ours = EvaluationTransform((size, size), "bicubic", crop_pct, "center", (0, 0, 0))
    pixels = ours(EncodedImage(jpeg, 10**8).open())
    assert np.array_equal(peer.pixels(jpeg), pixels)


def test_answers_of_the_sample(classifier: ModuleType, tmp_path: Path) -> None:
    export(Checkpoint(ROOT / "tinyvit" / "sample", "sample"), tmp_path / "exported")
    peer = classifier.Classifier(str(tmp_path / "exported"), streams=1, threads=1, batches=True)
    cat, coffee = ((ROOT / "imgs" / name).read_bytes() for name in PICTURES)
    assert peer(cat)[:3] == ["tiger cat", "Egyptian cat", "tabby, tabby cat"]
    assert peer(coffee)[0] == "espresso"
    batch = np.stack([peer.pixels(cat), peer.pixels(coffee)])
    assert peer.labels(batch) == [peer(cat), peer(coffee)]
