"""A checkpoint that would give wrong answers is refused at the start."""

import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from mlserver_timm.checkpoints.checkpoint import Checkpoint, describe
from mlserver_timm.checkpoints.network import network_of
from mlserver_timm.errors import CheckpointError
from mlserver_timm.inference.engines.factory import create_engine
from mlserver_timm.settings import RuntimeSettings
from tests.support.checkpoints import assert_one_sentence, edit
from tests.support.paths import ROOT
from tests.support.programs import output_of
from tests.support.timm_reference import make_checkpoint


@pytest.fixture
def checkpoint(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as failure:
        checkpoint = Checkpoint(folder, str(folder))
        network_of(checkpoint, describe(checkpoint))
    assert str(folder) in str(failure.value)
    assert_one_sentence(failure.value)
    return str(failure.value)


@pytest.mark.parametrize(
    "entries",
    [
        *[{"architecture": each} for each in (5, ["resnet18"], {"name": "resnet18"}, "", True)],
        *[
            {"num_classes": each, "label_names": None}
            for each in (0, -1, "3", 3.0, True, [3], 4, 10**12)
        ],
        *[{"pretrained_cfg": each} for each in ([], "model", 5)],
        # Arguments that build another network.
        *[{"model_args": {name: 5}} for name in ("num_classes", "no_such")],
        *[{"model_args": each} for each in ({"num_classes": 0}, {"in_chans": 1}, [1], 7)],
    ],
)
def test_invalid_entries(checkpoint: Path, entries: dict[str, Any]) -> None:
    edit(checkpoint, **entries)
    refusal(checkpoint)


def test_no_number_of_classes(checkpoint: Path) -> None:
    edit(checkpoint, num_classes=None)
    inner(checkpoint, num_classes=None)
    assert "num_classes" in refusal(checkpoint)


def inner(folder: Path, **values: Any) -> None:
    """Change entries of the pretrained_cfg."""
    present = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    edit(folder, pretrained_cfg={**present, **values})


@pytest.mark.parametrize(
    "name, value",
    [
        ("input_size", "3x224x224"),
        ("input_size", [224, 224]),
        ("input_size", [3, 224, "224"]),
        ("input_size", [3, 0, 224]),
        ("input_size", [3, 100_000, 100_000]),
        ("input_size", 224),
        ("crop_pct", "0.9"),
        ("crop_pct", -1),
        ("crop_pct", float("nan")),
        ("crop_mode", "middle"),
        ("crop_mode", 1),
        ("interpolation", "nearest-exact"),
        ("interpolation", 3),
        ("mean", "0.5"),
        ("mean", [0.5]),
        ("mean", [0.5, 0.5, float("inf")]),
        ("mean", 0.5),
        ("std", [0.5, 0, 0.5]),
    ],
)
def test_preprocessing(checkpoint: Path, name: str, value: Any) -> None:
    """Values with which every request would fail."""
    inner(checkpoint, **{name: value})
    assert name in refusal(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.int8, torch.bool])
def test_integers_in_place_of_weights(checkpoint: Path, kind: torch.dtype) -> None:
    """torch would convert them, and the answers would be nonsense."""
    weights = load_file(checkpoint / "model.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    save_file(weights | {name: weights[name].to(kind)}, checkpoint / "model.safetensors")
    assert "save them as floats" in refusal(checkpoint)


def test_network_without_pooling(tmp_path: Path) -> None:
    """It has scores for each patch, and none for the image."""
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3, global_pool="")
    timm.models.save_for_hf(network, tmp_path / "vit", safe_serialization=True)
    assert "[2, 197, 3]" in refusal(tmp_path / "vit")


def test_weights_that_only_their_owner_may_read(
    small_checkpoint: Path, public_folder: Path
) -> None:
    """safetensors writes them with these permissions."""
    folder = Path(shutil.copytree(small_checkpoint, public_folder / "weights"))
    (folder / "model.safetensors").chmod(0o600 if os.geteuid() == 0 else 0o000)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tinyvit')!r})\n"
        "from pathlib import Path\n"
        "from mlserver_timm.checkpoints.checkpoint import Checkpoint\n"
        "from mlserver_timm.errors import CheckpointError\n"
        "if len(sys.argv) > 2: __import__('os').setuid(int(sys.argv[2]))\n"
        "try: Checkpoint(Path(sys.argv[1]), 'it')\n"
        "except CheckpointError as error: print(error)\n"
    )
    other_user = ["65534"] if os.geteuid() == 0 else []
    output = output_of(sys.executable, "-c", code, folder, *other_user)
    assert f"chmod a+r {folder / 'model.safetensors'}" in output
    assert_one_sentence(output.strip())


@pytest.mark.parametrize(
    "tag, arguments, assumed",
    [
        ("a1_in1k", {}, None),
        ("fb_in22k_ft_in1k_384", {}, None),
        ("dist_in22k", {}, "imagenet-1k"),
        ("openai", {}, "imagenet-1k"),
        ("a1_in1k", {"num_classes": 1000}, "imagenet-1k"),
    ],
)
def test_assumed_labels(checkpoint: Path, tag: str, arguments: Any, assumed: str | None) -> None:
    """Labels are assumed unless the configuration says that the weights are ImageNet's."""
    edit(checkpoint, num_classes=1000, label_names=None, model_args=arguments)
    inner(checkpoint, tag=tag)
    assert describe(Checkpoint(checkpoint, "it")).assumed_labels == assumed


def test_own_labels_are_not_assumed(checkpoint: Path) -> None:
    assert describe(Checkpoint(checkpoint, "it")).assumed_labels is None


def test_assumed_labels_are_logged_at_each_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_checkpoint(
        tmp_path / "own", classes=1000, preprocessing={"input_size": (3, 64, 64)}
    )
    settings = RuntimeSettings(engine="torch")
    for source, warnings in [
        (Checkpoint(folder, str(folder)), 1),
        (Checkpoint(folder, str(folder)), 1),
        (Checkpoint(folder, "timm/mobilenetv3_small_050.lamb_in1k"), 0),
        (Checkpoint(folder, "sample", fallback=True), 0),
    ]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mlserver.tinyvit"):
            create_engine(source, settings, 1, 4)
        assert caplog.text.count("imagenet-1k") == warnings
