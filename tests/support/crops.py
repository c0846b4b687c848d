"""Crops of photographs."""

import functools

import numpy as np
from PIL import Image

from mlserver_timm.checkpoints.checkpoint import Checkpoint
from tests.support.clients import CAT, COFFEE
from tests.support.timm_reference import SAMPLE

CHECKPOINT = Checkpoint(SAMPLE, "sample")


@functools.cache
def photographs() -> list[Image.Image]:
    """Return squares of several sizes and places of both photographs."""
    squares = []
    for path in (CAT, COFFEE):
        photo = Image.open(path).convert("RGB")
        for side in (120, 180, 240, 300):
            for left in np.linspace(0, photo.width - side, 6).astype(int):
                for top in np.linspace(0, photo.height - side, 3).astype(int):
                    squares.append(photo.crop((left, top, left + side, top + side)))
    return squares


@functools.cache
def crops() -> np.ndarray:
    """Return them in the network's size, uint8 `[N,224,224,3]`."""
    size, bicubic = (224, 224), Image.Resampling.BICUBIC
    return np.stack([np.asarray(photo.resize(size, bicubic)) for photo in photographs()])
