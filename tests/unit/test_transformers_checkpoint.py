"""Checkpoints as transformers' TimmWrapperForImageClassification.save_pretrained writes them.

The configurations are written by hand, because transformers is not installed here; the folder that
it writes itself is in tests/huggingface.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mlserver_timm.checkpoints.checkpoint import Checkpoint, describe, load_network
from tests.support.checkpoints import NAMES
from tests.support.timm_reference import timm_reference

LABELS: dict[str, dict[str, Any]] = {
    "label_names": {"label_names": NAMES, "label_descriptions": None},
    "id2label": {
        "id2label": {str(i): name for i, name in enumerate(NAMES)},
        "label2id": {name: i for i, name in enumerate(NAMES)},
        "label_names": None,
    },
}
"""Which of them it writes depends on its version."""


@pytest.fixture(params=LABELS)
def saved(request: pytest.FixtureRequest, small_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint as transformers would have saved it."""
    folder = Path(shutil.copytree(small_checkpoint, tmp_path / "saved"))
    config = json.loads((folder / "config.json").read_text())
    weights = {**config["pretrained_cfg"], "crop_mode": None, "test_input_size": None}
    del weights["num_classes"]
    content = {
        "architecture": config["architecture"],
        "architectures": ["TimmWrapperForImageClassification"],
        "do_pooling": True,
        "dtype": "float32",
        "initializer_range": 0.02,
        "model_args": None,
        "model_type": "timm_wrapper",
        "num_classes": len(NAMES),
        "num_features": config["num_features"],
        "pretrained_cfg": weights,
        "problem_type": None,
        "transformers_version": "4.57.1",
        **LABELS[request.param],
    }
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_description(saved: Path, small_checkpoint: Path) -> None:
    assert describe(Checkpoint(saved, "it")) == describe(Checkpoint(small_checkpoint, "it"))
    assert describe(Checkpoint(saved, "it")).labels == NAMES


def test_network(saved: Path, small_checkpoint: Path) -> None:
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        network = load_network(Checkpoint(saved, "it"))
        torch.testing.assert_close(network(x), timm_reference(small_checkpoint).network(x))
