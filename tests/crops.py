"""Photographs in the network's size, and timm's probabilities of them."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from checkpoint import Source
from clients import COFFEE
from engine import Engine, create_engine
from truth import SAMPLE, truth

CAT = COFFEE.with_name("cat.jpg")


SOURCE = Source(SAMPLE, "sample")


@functools.cache
def photographs() -> list[Image.Image]:
    """Squares of several sizes and places of both photographs."""
    found = []
    for path in (CAT, COFFEE):
        photo = Image.open(path).convert("RGB")
        for side in (120, 180, 240, 300):
            for left in np.linspace(0, photo.width - side, 6).astype(int):
                for top in np.linspace(0, photo.height - side, 3).astype(int):
                    found.append(photo.crop((left, top, left + side, top + side)))
    return found


@functools.cache
def crops() -> np.ndarray:
    """The photographs in the network's size, `[N,64,64,3]`."""
    size, bicubic = (64, 64), Image.Resampling.BICUBIC
    return np.stack([np.asarray(photo.resize(size, bicubic)) for photo in photographs()])


def expected(pixels: np.ndarray) -> np.ndarray:
    """timm's probabilities."""
    return np.stack([truth().probabilities(Image.fromarray(one)) for one in pixels])


@pytest.fixture(scope="session")
def engines(cache_dir: Path) -> Callable[[str, str], Engine]:
    """Each engine of the sample, made once."""

    @functools.cache
    def one(kind: Any, precision: Any) -> Engine:
        return create_engine(kind, SOURCE, precision, 2, cache_dir, 24)[0]

    return one
