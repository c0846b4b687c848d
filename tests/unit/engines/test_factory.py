"""The choice of the engine, and its warm-up."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlserver_timm.checkpoints.checkpoint import Checkpoint
from mlserver_timm.errors import EngineUnavailable
from mlserver_timm.inference.engines import factory
from mlserver_timm.inference.engines.base import Outputs
from mlserver_timm.inference.engines.factory import create_engine, warm_up
from mlserver_timm.settings import RuntimeSettings


def chosen(folder: Path, cache_dir: Path, kind: Any = "auto") -> str:
    settings = RuntimeSettings(engine=kind, cache_dir=cache_dir)
    return create_engine(Checkpoint(folder, "it"), settings, 1, 4)[0].name.split()[0]


@pytest.mark.slow
def test_auto(small_checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch with a GPU, else openvino if it is installed, else torch."""
    monkeypatch.setattr(factory, "_has_gpu", lambda: False)
    assert chosen(small_checkpoint, cache_dir) == "openvino"
    monkeypatch.setattr(factory, "_has_gpu", lambda: True)
    assert chosen(small_checkpoint, cache_dir) == "torch"
    assert chosen(small_checkpoint, cache_dir, "openvino") == "openvino"
    monkeypatch.setattr(factory, "_has_gpu", lambda: False)
    monkeypatch.setattr(factory, "_installed", lambda package: package != "openvino")
    assert chosen(small_checkpoint, cache_dir) == "torch"
    with pytest.raises(EngineUnavailable, match="not installed"):
        chosen(small_checkpoint, cache_dir, "openvino")


class RecordingEngine:
    """An engine that records its calls."""

    name, precision, outputs = "engine", "fp32", frozenset({"probabilities", "logits"})

    def __init__(self, num_streams: int, num_infer_requests: int, images_per_request: int) -> None:
        self.num_streams = num_streams
        self.num_infer_requests = num_infer_requests
        self.images_per_request = images_per_request
        self.latency: list[Any] = []
        self.throughput: list[Any] = []

    def infer_latency(self, pixels: np.ndarray, outputs: Collection[str]) -> Outputs:
        self.latency.append((pixels.shape, pixels.dtype, set(outputs)))
        return dict.fromkeys(outputs, pixels)

    def infer_throughput(self, pixels: np.ndarray, outputs: Collection[str]) -> Outputs:
        self.throughput.append((pixels.shape, pixels.dtype, set(outputs)))
        return dict.fromkeys(outputs, pixels)


@pytest.mark.parametrize(
    "streams, infer_requests, max_images, sizes",
    [(1, 1, 4, [1, 2, 3, 4]), (2, 4, 1, [1]), (2, 4, 2, [1, 2]), (3, 6, 3, [1, 2, 3])],
)
def test_warm_up(streams: int, infer_requests: int, max_images: int, sizes: list[int]) -> None:
    """Every batch size runs in every stream with every output."""
    engine = RecordingEngine(streams, infer_requests, max_images)
    warm_up(engine, (56, 72))
    outputs = set(engine.outputs)
    assert engine.latency == [((1, 56, 72, 3), np.uint8, outputs)]
    assert engine.throughput == [
        ((n, 56, 72, 3), np.uint8, outputs) for n in sizes for _ in range(streams)
    ]
