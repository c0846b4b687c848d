"""A checkpoint is read as timm reads it, or one sentence says what is wrong with it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo

from mlserver_timm.checkpoints.checkpoint import Checkpoint, describe, load_network
from mlserver_timm.checkpoints.hub import find_checkpoint
from mlserver_timm.errors import CheckpointError
from tests.support.checkpoints import NAMES, REPOSITORY, assert_one_sentence, edit
from tests.support.paths import ROOT
from tests.support.timm_reference import make_checkpoint, timm_reference


@pytest.fixture
def checkpoint(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def change(**values: Any) -> Callable[[Path], object]:
    return lambda folder: edit(folder, **values)


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def not_a_number(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["classifier.weight"][0, 0] = float("nan")
    save_file(weights, folder / WEIGHTS)


WEIGHTS = "model.safetensors"
FOUR_LABELS = [*NAMES, "more"]
BREAKS: dict[str, Callable[[Path], object]] = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "only a pickle": only_a_pickle,
    "invalid JSON": write("config.json", b"{'architecture': "),
    "a JSON list": write("config.json", b"[1, 2]"),
    "empty JSON": write("config.json", b"{}"),
    "binary config": write("config.json", bytes(range(256))),
    "unknown architecture": change(architecture="tiny_vit_6m_225"),
    "no architecture": change(architecture=None),
    "another architecture": change(architecture="mobilenetv3_small_100"),
    "truncated weights": lambda f: write(WEIGHTS, (f / WEIGHTS).read_bytes()[:-1000])(f),
    "empty weights": write(WEIGHTS, b""),
    "other weights": lambda f: save_file({"weight": torch.zeros(3)}, f / WEIGHTS),
    "NaN": not_a_number,
    "too few labels": change(label_names=NAMES[:-1]),
    "too many labels": change(label_names=FOUR_LABELS),
    "labels with a gap": change(label_names={"0": "a", "1": "b", "3": "d"}),
    "text for labels": change(label_names="tabby"),
    "numbers for labels": change(label_names=[1, 2, 3]),
    "other class count": change(
        num_classes=4, label_names=FOUR_LABELS, model_args={"num_classes": 4}
    ),
    "labels half described": change(label_descriptions={NAMES[0]: "a cat"}),
}


@pytest.mark.parametrize("how", BREAKS)
def test_broken_checkpoint(checkpoint: Path, how: str) -> None:
    """An error that names the folder, never a reason to serve the fallback."""
    BREAKS[how](checkpoint)
    with pytest.raises(CheckpointError) as failure:
        source = find_checkpoint(str(checkpoint), REPOSITORY, "sample", ROOT / "tinyvit")
        describe(source)
        load_network(source)
    assert str(checkpoint) in str(failure.value)
    assert_one_sentence(failure.value)


def test_checkpoint_for_grey_images(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "grey", model_args={"in_chans": 1}, label_names=NAMES)
    with pytest.raises(CheckpointError, match="only RGB") as failure:
        describe(Checkpoint(folder, "it"))
    assert_one_sentence(failure.value)


def labels(folder: Path) -> list[str]:
    return describe(Checkpoint(folder, "it")).labels


@pytest.mark.parametrize(
    "names", [NAMES, dict(enumerate(NAMES)), {2: NAMES[2], 0: NAMES[0], 1: NAMES[1]}]
)
def test_label_names(checkpoint: Path, names: Any) -> None:
    edit(checkpoint, label_names=names)
    assert labels(checkpoint) == NAMES


def test_label_descriptions(checkpoint: Path) -> None:
    """They replace the names."""
    described = {"n3": "neither", "n1": "cat", "n2": "a cup"}
    edit(checkpoint, label_names=["n1", "n2", "n3"], label_descriptions=described)
    assert labels(checkpoint) == ["cat", "a cup", "neither"]


def test_missing_labels_are_numbers(checkpoint: Path) -> None:
    edit(checkpoint, label_names=None)
    assert labels(checkpoint) == ["0", "1", "2"]


def of_classes(folder: Path, count: int) -> list[str]:
    edit(folder, label_names=None, num_classes=count)
    return labels(folder)


@pytest.mark.parametrize(
    ("count", "subset"), [(1000, "imagenet-1k"), (21841, "imagenet-22k"), (11821, "imagenet-12k")]
)
def test_labels_of_imagenet(checkpoint: Path, count: int, subset: str) -> None:
    assert of_classes(checkpoint, count) == ImageNetInfo(subset).label_descriptions()


def test_order_of_imagenet_1k(checkpoint: Path) -> None:
    """A few classes that are well known by their number."""
    labels = of_classes(checkpoint, 1000)
    known = {0: "tench", 207: "golden retriever", 281: "tabby", 504: "coffee mug", 985: "daisy"}
    assert {i: labels[i].split(",")[0] for i in known} == known


FROM_1K_TO_22K = {
    0: 359,
    29: 910,
    281: 2397,
    999: 21815,
}
"""Some lines of imagenet_1kto22k.txt, which the TinyViT authors fine-tuned with:
github.com/microsoft/Cream, TinyViT/imagenet_1kto22k.txt."""


def test_order_of_imagenet_22k(checkpoint: Path) -> None:
    """The order TinyViT was trained with; timm has another one of nearly the same length."""
    few, many = of_classes(checkpoint, 1000), of_classes(checkpoint, 21841)
    assert len(many) == 21841
    for one, other in FROM_1K_TO_22K.items():
        assert many[other] == few[one]
    synsets = ImageNetInfo("imagenet-22k").label_names()
    assert synsets == sorted(synsets), "as the folders of the data set are read"
    assert ImageNetInfo("imagenet-22k-ms").label_names() != synsets


def test_description(tmp_path: Path) -> None:
    folder = make_checkpoint(
        tmp_path / "it",
        preprocessing={
            "input_size": (3, 72, 56),
            "crop_pct": 0.875,
            "crop_mode": "squash",
            "interpolation": "bilinear",
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.3, 0.4),
        },
        label_names=NAMES,
    )
    description = describe(Checkpoint(folder, "it"))
    assert description.input_size == (72, 56)
    assert (description.crop_pct, description.crop_mode, description.interpolation) == (
        0.875,
        "squash",
        "bilinear",
    )
    assert description.mean == (0.5, 0.4, 0.3) and description.std == (0.2, 0.3, 0.4)
    assert description.architecture == "mobilenetv3_small_050"


def test_digest_changes_with_every_byte(checkpoint: Path) -> None:
    seen = {Checkpoint(checkpoint, "it").digest()}
    for name in ("config.json", "model.safetensors"):
        content = bytearray((checkpoint / name).read_bytes())
        content[-1] ^= 1
        (checkpoint / name).write_bytes(content)
        seen.add(Checkpoint(checkpoint, "another name").digest())
    assert len(seen) == 3


def test_weights_are_timms(small_checkpoint: Path) -> None:
    network = load_network(Checkpoint(small_checkpoint, "it"))
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 64, 64))).float()
    with torch.inference_mode():
        torch.testing.assert_close(network(x), timm_reference(small_checkpoint).network(x))
