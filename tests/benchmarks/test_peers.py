"""Peers are compared on equal terms: the same libraries, pixels, network and answers."""

import importlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mlserver_timm.checkpoints.exported import DESCRIPTION
from mlserver_timm.images.decode import open_file
from mlserver_timm.images.transforms import EvaluationTransform
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

PEERS = ROOT / "benchmarks" / "peers"
LOCKS = sorted(PEERS.glob("*/requirements.lock"))
IMAGES = ("cat.jpg", "coffee.jpg")


@pytest.fixture(scope="module")
def classifier() -> ModuleType:
    """The module that all peers share; it replaces openvino_telemetry, which is put back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "openvino_telemetry", None)
        patch.syspath_prepend(PEERS)
        return importlib.import_module("classifier")


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


@pytest.mark.parametrize("crop_pct", [0.875, 0.95])
def test_same_pixels(
    classifier: ModuleType, exported_sample: Path, tmp_path: Path, crop_pct: float
) -> None:
    """With the preprocessing of the sample and of the full-size network."""
    folder = shutil.copytree(exported_sample, tmp_path / "made")
    content = json.loads((folder / DESCRIPTION).read_text())
    content["description"]["crop_pct"] = crop_pct
    (folder / DESCRIPTION).write_text(json.dumps(content))
    peer = classifier.Classifier(str(folder), streams=1, threads=1)
    ours = EvaluationTransform((224, 224), "bicubic", crop_pct, "center", (0, 0, 0))
    for image in IMAGES:
        jpeg = (ROOT / "imgs" / image).read_bytes()
        assert np.array_equal(peer.pixels(jpeg), ours(open_file(io.BytesIO(jpeg))))


def test_answers_of_the_sample(classifier: ModuleType, exported_sample: Path) -> None:
    peer = classifier.Classifier(str(exported_sample), streams=1, threads=1, batches=True)
    cat, coffee = ((ROOT / "imgs" / name).read_bytes() for name in IMAGES)
    assert peer(cat)[:3] == ["tiger cat", "Egyptian cat", "tabby, tabby cat"]
    assert peer(coffee)[0] == "espresso"
    batch = np.stack([peer.pixels(cat), peer.pixels(coffee)])
    assert peer.labels(batch) == [peer(cat), peer(coffee)]
