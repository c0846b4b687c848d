"""Which engine is chosen, and that it is warmed up."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from crops import SOURCE
from engine import EngineError, create_engine, warm_up


def chosen(cache_dir: Path, kind: Any = "auto") -> str:
    return create_engine(kind, SOURCE, "fp32", 1, cache_dir, 4)[0].name.split()[0]


def test_auto(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch where there is a GPU, else openvino where it is installed, else torch."""
    monkeypatch.setattr(engine, "_has_gpu", lambda: False)
    assert chosen(cache_dir) == "openvino"
    monkeypatch.setattr(engine, "_has_gpu", lambda: True)
    assert chosen(cache_dir) == "torch"
    assert chosen(cache_dir, "openvino") == "openvino"
    monkeypatch.setattr(engine, "_has_gpu", lambda: False)
    monkeypatch.setattr(engine, "_installed", lambda package: package != "openvino")
    assert chosen(cache_dir) == "torch"
    with pytest.raises(EngineError, match="not installed"):
        chosen(cache_dir, "openvino")


class Noting:
    """An engine that notes what it is called with."""

    name, precision = "noting", "fp32"

    def __init__(self, streams: int, lanes: int, share: int) -> None:
        self.streams = streams
        self.lanes = lanes
        self.share = share
        self.alone: list[Any] = []
        self.beside: list[Any] = []

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self.alone.append((pixels.shape, pixels.dtype))
        return pixels

    def in_stream(self, pixels: np.ndarray) -> np.ndarray:
        self.beside.append((pixels.shape, pixels.dtype))
        return pixels


@pytest.mark.parametrize(
    "streams, lanes, share, beside",
    [(1, 1, 4, [1, 2, 3, 4]), (2, 4, 1, [1]), (2, 4, 2, [1, 2]), (3, 6, 3, [1, 2, 3])],
)
def test_warm_up(streams: int, lanes: int, share: int, beside: list[int]) -> None:
    """Every size of a batch that will come, in every stream."""
    noting = Noting(streams, lanes, share)
    warm_up(noting, (56, 72))
    assert noting.alone == [((1, 56, 72, 3), np.uint8)]
    assert noting.beside == [((n, 56, 72, 3), np.uint8) for n in beside for _ in range(streams)]
