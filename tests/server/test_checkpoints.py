"""The configured weights are served."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from client.local import LocalServer
from tests.support.background_load import altered, extra
from tests.support.checkpoints import REPOSITORY, edit, fill_cache
from tests.support.clients import CAT, COFFEE, body, infer, tensor
from tests.support.folders import copy_runtime
from tests.support.servers import Serve
from tests.support.timm_reference import make_checkpoint, timm_reference

pytestmark = pytest.mark.slow


def facts(server: LocalServer) -> dict[str, Any]:
    return requests.get(f"{server.url}/v2/models/tinyvit", timeout=10).json()["parameters"]


def assert_serves(server: LocalServer, folder: Path) -> None:
    """Assert that the answers are timm's with these weights."""
    expected = timm_reference(folder)
    for path in (CAT, COFFEE):
        outputs = infer(server, body(tensor(path.read_bytes()))).json()["outputs"]
        labels, scores = (output["data"] for output in outputs)
        assert set(labels) <= set(expected.labels)
        expected.assert_matches(Image.open(path).convert("RGB"), labels, scores)


def test_fine_tuned_folder(serve: Serve, tmp_path: Path) -> None:
    """One variable changes weights, input size, interpolation and labels."""
    folder = make_checkpoint(
        tmp_path / "finetuned",
        "tiny_vit_5m_224",
        classes=7,
        preprocessing={"input_size": (3, 96, 96), "crop_pct": 0.9, "interpolation": "bilinear"},
        model_args={"window_sizes": [4, 4, 4, 2]},
        label_names=[f"kind {i}" for i in range(7)],
    )
    server = serve(env={"MLSERVER_MODEL_URI": str(folder), "TINYVIT_ENGINE": "torch"})
    loaded = facts(server)
    assert loaded["weights"] == str(folder)
    assert not loaded["fallback"]
    assert (loaded["classes"], loaded["input_size"]) == (7, "3x96x96")
    assert_serves(server, folder)


def test_cached_model_offline(serve: Serve, tmp_path: Path, environment: Mapping[str, str]) -> None:
    """One setting changes the classifier, without network access."""
    checkpoint = make_checkpoint(tmp_path / "resnet", "resnet18", classes=10)
    edit(checkpoint, label_names=[f"n{i}" for i in range(10)])
    fill_cache(tmp_path / "home", checkpoint)
    folder = copy_runtime(tmp_path)
    altered(folder, "model-settings.json", extra(pretrained_model=REPOSITORY))
    server = serve(folder=folder, env={"HF_HOME": str(tmp_path / "home")})
    loaded = facts(server)
    assert loaded["weights"] == REPOSITORY
    assert loaded["architecture"] == "resnet18"
    assert not loaded["fallback"]
    assert "FALLBACK" not in server.output()
    assert_serves(server, checkpoint)
