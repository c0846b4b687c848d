"""One or two timm architectures of each kind: the runtime computes what timm computes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from mlserver_timm.checkpoints.checkpoint import Checkpoint
from mlserver_timm.checkpoints.converter import convert_here
from mlserver_timm.checkpoints.network import EMBEDDING, LOGITS, PROBABILITIES
from mlserver_timm.inference.engines.openvino_engine import OpenVINOEngine
from tests.support.timm_reference import TOLERANCE

pytestmark = pytest.mark.slow

CLASSES = 13

ARCHITECTURES = Path(__file__).with_name("architectures.txt").read_text().split()


def calibrated(architecture: str) -> Any:
    """Return a network of seeded weights with activations in bounds and classes that differ."""
    torch.manual_seed(0)
    network = timm.create_model(architecture, num_classes=CLASSES)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
        norm.reset_running_stats()
    network.train()
    with torch.no_grad():
        if norms:
            for _ in range(2):
                network(torch.randn(8, *network.pretrained_cfg["input_size"]))
        for parameter in _parameters(network.get_classifier()):
            parameter.normal_(std=0.1)
    return network.eval()


def _parameters(classifier: Any) -> list[Any]:
    parts = classifier if isinstance(classifier, (tuple, list)) else [classifier]
    return [parameter for part in parts for parameter in part.parameters()]


def reference(network: Any, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return what timm computes for the pixels."""
    config = timm.data.resolve_data_config({}, model=network)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.inference_mode():
        logits = network(x)
        embedding = network.forward_head(network.forward_features(x), pre_logits=True)
    return {
        PROBABILITIES: logits.softmax(-1).numpy(),
        LOGITS: logits.numpy(),
        EMBEDDING: embedding.flatten(1).numpy(),
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architecture(architecture: str, tmp_path: Path) -> None:
    """Every output is timm's."""
    network = calibrated(architecture)
    separate = {name: values.clone() for name, values in network.state_dict().items()}
    network.state_dict = lambda: separate  # safetensors does not save shared weights
    timm.models.save_for_hf(
        network,
        tmp_path / "it",
        safe_serialization=True,
        model_config={"label_names": [f"kind {i}" for i in range(CLASSES)]},
    )
    checkpoint = Checkpoint(tmp_path / "it", architecture)
    model, description = convert_here(checkpoint)
    engine = OpenVINOEngine(model, "fp32", 2, 8, 2)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *description.input_size, 3), np.uint8)
    expected = reference(network, pixels)
    assert expected[PROBABILITIES].std() > 1e-3, "the classes must differ"
    for infer in (engine.infer_latency, engine.infer_throughput):
        outputs = infer(pixels, engine.outputs)
        assert PROBABILITIES in outputs and LOGITS in outputs
        for name, values in outputs.items():
            scale = max(1.0, float(np.abs(expected[name]).max()))
            atol = TOLERANCE if name == PROBABILITIES else TOLERANCE * scale
            np.testing.assert_allclose(values, expected[name], rtol=0, atol=atol, err_msg=name)
