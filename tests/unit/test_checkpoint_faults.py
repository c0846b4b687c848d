"""A checkpoint that could not be served rightly is refused before it is served at all."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from mlserver_timm.checkpoints.checkpoint import Checkpoint, describe
from mlserver_timm.checkpoints.network import network_of
from mlserver_timm.errors import CheckpointError
from mlserver_timm.inference.engines.factory import create_engine
from mlserver_timm.settings import RuntimeSettings
from tests.support.checkpoints import NAMES, assert_one_sentence, edit
from tests.support.paths import ROOT
from tests.support.timm_reference import make_checkpoint


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("small") / "small", label_names=NAMES)


@pytest.fixture
def checkpoint(small: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(small, tmp_path / "checkpoint"))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as failure:
        checkpoint = Checkpoint(folder, str(folder))
        network_of(checkpoint, describe(checkpoint))
    assert str(folder) in str(failure.value)
    assert_one_sentence(failure.value)
    return str(failure.value)


@pytest.mark.parametrize("architecture", [5, None, ["resnet18"], {"name": "resnet18"}, "", True])
def test_architecture(checkpoint: Path, architecture: Any) -> None:
    content = json.loads((checkpoint / "config.json").read_text())
    content["architecture"] = architecture
    (checkpoint / "config.json").write_text(json.dumps(content))
    refusal(checkpoint)


@pytest.mark.parametrize("classes", [0, -1, "3", 3.0, True, [3], 4, 10**12])
def test_number_of_classes(checkpoint: Path, classes: Any) -> None:
    edit(checkpoint, num_classes=classes, label_names=None)
    refusal(checkpoint)


def test_no_number_of_classes(checkpoint: Path) -> None:
    edit(checkpoint, num_classes=None)
    inner(checkpoint, num_classes=None)
    assert "num_classes" in refusal(checkpoint)


def inner(folder: Path, **values: Any) -> None:
    """Changes entries of the pretrained_cfg."""
    known = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    edit(folder, pretrained_cfg={**known, **values})


@pytest.mark.parametrize(
    "name, value",
    [
        ("input_size", "3x224x224"),
        ("input_size", [224, 224]),
        ("input_size", [3, 224, "224"]),
        ("input_size", [3, 0, 224]),
        ("input_size", [3, 224.5, 224]),
        ("input_size", [3, 100_000, 100_000]),
        ("input_size", 224),
        ("crop_pct", "0.9"),
        ("crop_pct", -1),
        ("crop_pct", 1e-9),
        ("crop_pct", float("nan")),
        ("crop_pct", True),
        ("crop_mode", "middle"),
        ("crop_mode", 1),
        ("interpolation", "random"),
        ("interpolation", "nearest-exact"),
        ("interpolation", 3),
        ("mean", "0.5"),
        ("mean", [0.5]),
        ("mean", [0.5, 0.5, float("inf")]),
        ("mean", 0.5),
        ("std", [0.5, 0, 0.5]),
        ("std", [0.5, -0.5, 0.5]),
        ("std", ["a", "b", "c"]),
    ],
)
def test_preprocessing(checkpoint: Path, name: str, value: Any) -> None:
    """That every request would have failed with."""
    inner(checkpoint, **{name: value})
    assert name in refusal(checkpoint)


@pytest.mark.parametrize("value", [[], "model", 5])
def test_pretrained_cfg(checkpoint: Path, value: Any) -> None:
    edit(checkpoint, pretrained_cfg=value)
    refusal(checkpoint)


@pytest.mark.parametrize(
    "arguments", [{"num_classes": 5}, {"num_classes": 0}, {"in_chans": 1}, {"no_such": 1}, [1], 7]
)
def test_arguments_that_build_another_network(checkpoint: Path, arguments: Any) -> None:
    edit(checkpoint, model_args=arguments)
    refusal(checkpoint)


def test_other_number_of_classes_in_both(checkpoint: Path) -> None:
    """timm would leave the classifier as it was made, at random."""
    edit(checkpoint, model_args={"num_classes": 4}, label_names=None)
    edit(checkpoint, num_classes=4)
    refusal(checkpoint)


def test_network_without_pooling(tmp_path: Path) -> None:
    """A score for each patch is none for the picture."""
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3, global_pool="")
    timm.models.save_for_hf(network, tmp_path / "vit", safe_serialization=True)
    assert "[2, 197, 3]" in refusal(tmp_path / "vit")


def test_pickled_weights(checkpoint: Path) -> None:
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    assert "safe_serialization=True" in refusal(checkpoint)


@pytest.fixture
def for_everybody() -> Iterator[Path]:
    """A folder that any user reaches; pytest's own are for one only."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_weights_that_only_their_owner_may_read(small: Path, for_everybody: Path) -> None:
    """Which is how safetensors writes them."""
    folder = Path(shutil.copytree(small, for_everybody / "weights"))
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
    nobody = ["65534"] if os.geteuid() == 0 else []
    command = [sys.executable, "-c", code, str(folder), *nobody]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert f"chmod a+r {folder / 'model.safetensors'}" in done.stdout
    assert_one_sentence(done.stdout.strip())


@pytest.mark.parametrize(
    "tag, arguments, assumed",
    [
        ("a1_in1k", {}, None),
        ("fb_in22k_ft_in1k_384", {}, None),
        ("dist_in22k", {}, "imagenet-1k"),
        ("openai", {}, "imagenet-1k"),
        ("", {}, "imagenet-1k"),
        ("a1_in1k", {"num_classes": 1000}, "imagenet-1k"),
    ],
)
def test_labels_that_are_assumed(
    checkpoint: Path, tag: str, arguments: Any, assumed: str | None
) -> None:
    """Unless the configuration says that the weights are ImageNet's."""
    edit(checkpoint, num_classes=1000, label_names=None, model_args=arguments)
    inner(checkpoint, tag=tag)
    assert describe(Checkpoint(checkpoint, "it")).assumed_labels == assumed


def test_own_labels_are_not_assumed(checkpoint: Path) -> None:
    assert describe(Checkpoint(checkpoint, "it")).assumed_labels is None


def test_assumed_labels_are_said_at_each_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_checkpoint(
        tmp_path / "own", classes=1000, preprocessing={"input_size": (3, 64, 64)}
    )
    settings = RuntimeSettings(engine="torch")
    for source, said in [
        (Checkpoint(folder, str(folder)), 1),
        (Checkpoint(folder, str(folder)), 1),
        (Checkpoint(folder, "timm/mobilenetv3_small_050.lamb_in1k"), 0),
        (Checkpoint(folder, "sample", fallback=True), 0),
    ]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mlserver.tinyvit"):
            create_engine(source, settings, 1, 4)
        assert caplog.text.count("imagenet-1k") == said
