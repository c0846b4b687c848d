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
from tests.support.timm_reference import make_checkpoint, truth


@pytest.fixture
def checkpoint(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{'architecture': ")


def json_of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


def empty_json(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def binary_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(bytes(range(256)))


def unknown_architecture(folder: Path) -> None:
    edit(folder, architecture="tiny_vit_6m_225")


def no_architecture(folder: Path) -> None:
    edit(folder, architecture=None)


def another_architecture(folder: Path) -> None:
    edit(folder, architecture="mobilenetv3_small_100")


def truncated_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1000])


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def other_weights(folder: Path) -> None:
    save_file({"weight": torch.zeros(3)}, folder / "model.safetensors")


def not_a_number(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors")


def too_few_labels(folder: Path) -> None:
    edit(folder, label_names=NAMES[:-1])


def too_many_labels(folder: Path) -> None:
    edit(folder, label_names=[*NAMES, "more"])


def labels_with_a_gap(folder: Path) -> None:
    edit(folder, label_names={"0": "a", "1": "b", "3": "d"})


def labels_that_are_none(folder: Path) -> None:
    edit(folder, label_names="tabby")


def labels_of_numbers(folder: Path) -> None:
    edit(folder, label_names=[1, 2, 3])


def other_class_count(folder: Path) -> None:
    edit(folder, num_classes=4, label_names=[*NAMES, "more"], model_args={"num_classes": 4})


def labels_half_described(folder: Path) -> None:
    edit(folder, label_descriptions={NAMES[0]: "a cat"})


BREAKS: list[Callable[[Path], None]] = [
    without_config,
    without_weights,
    only_a_pickle,
    no_json,
    json_of_another_kind,
    empty_json,
    binary_config,
    unknown_architecture,
    no_architecture,
    another_architecture,
    truncated_weights,
    empty_weights,
    other_weights,
    not_a_number,
    too_few_labels,
    too_many_labels,
    labels_with_a_gap,
    labels_that_are_none,
    labels_of_numbers,
    other_class_count,
    labels_half_described,
]


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda f: f.__name__)
def test_broken_checkpoint(checkpoint: Path, break_it: Callable[[Path], None]) -> None:
    """Never a reason to serve something else: an error, which names the folder."""
    break_it(checkpoint)
    with pytest.raises(CheckpointError) as failure:
        source = find_checkpoint(str(checkpoint), REPOSITORY, "sample", ROOT / "tinyvit")
        describe(source)
        load_network(source)
    assert str(checkpoint) in str(failure.value)
    assert_one_sentence(failure.value)


def test_checkpoint_for_grey_pictures(tmp_path: Path) -> None:
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
    """What people read, where there is such a thing besides the names."""
    described = {"n3": "neither", "n1": "cat", "n2": "a cup"}
    edit(checkpoint, label_names=["n1", "n2", "n3"], label_descriptions=described)
    assert labels(checkpoint) == ["cat", "a cup", "neither"]


def test_labels_of_nobody(checkpoint: Path) -> None:
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
    """Some that everybody knows by number."""
    told = of_classes(checkpoint, 1000)
    known = {0: "tench", 207: "golden retriever", 281: "tabby", 504: "coffee mug", 985: "daisy"}
    assert {i: told[i].split(",")[0] for i in known} == known


FROM_1K_TO_22K = {
    0: 359,
    1: 368,
    2: 460,
    3: 475,
    28: 908,
    29: 910,
    281: 2397,
    282: 2398,
    995: 21179,
    996: 21194,
    997: 21198,
    998: 21367,
    999: 21815,
}
"""Some lines of imagenet_1kto22k.txt, which the TinyViT authors fine-tuned with:
github.com/microsoft/Cream, TinyViT/imagenet_1kto22k.txt."""


def test_order_of_imagenet_22k(checkpoint: Path) -> None:
    """The order TinyViT was trained with; timm knows another one of nearly the same length."""
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
    told = describe(Checkpoint(folder, "it"))
    assert told.input_size == (72, 56)
    assert (told.crop_pct, told.crop_mode, told.interpolation) == (0.875, "squash", "bilinear")
    assert told.mean == (0.5, 0.4, 0.3) and told.std == (0.2, 0.3, 0.4)
    assert told.architecture == "mobilenetv3_small_050"


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
        torch.testing.assert_close(network(x), truth(small_checkpoint).network(x))
