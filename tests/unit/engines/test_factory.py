"""The choice of the engine, and its warm-up."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from mlserver_timm.checkpoints.checkpoint import Checkpoint
from mlserver_timm.errors import EngineUnavailable
from mlserver_timm.inference.engines import factory
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


@pytest.mark.parametrize(
    "streams, infer_requests, max_images, sizes",
    [(1, 1, 4, [1, 2, 3, 4]), (2, 4, 1, [1]), (2, 4, 2, [1, 2]), (3, 6, 3, [1, 2, 3])],
)
def test_warm_up(streams: int, infer_requests: int, max_images: int, sizes: list[int]) -> None:
    """Every batch size runs in every stream with every output."""
    outputs = frozenset({"probabilities", "logits"})
    engine = Mock(
        num_streams=streams,
        num_infer_requests=infer_requests,
        images_per_request=max_images,
        outputs=outputs,
    )
    warm_up(engine, (56, 72))
    latency, throughput = (
        [(pixels.shape, pixels.dtype, set(names)) for (pixels, names), _ in infer.call_args_list]
        for infer in (engine.infer_latency, engine.infer_throughput)
    )
    assert latency == [((1, 56, 72, 3), np.uint8, outputs)]
    assert throughput == [
        ((n, 56, 72, 3), np.uint8, outputs) for n in sizes for _ in range(streams)
    ]
