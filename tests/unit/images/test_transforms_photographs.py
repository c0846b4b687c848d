"""Large photographs: timm's exact pixels in fp32, decoded smaller for an inexact engine."""

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mlserver_timm.images.decode import open_file
from mlserver_timm.images.transforms import EvaluationTransform
from tests.support.clients import CAT, COFFEE, encoded
from tests.support.images import decoded_by_pillow
from tests.support.paths import ROOT
from tests.support.timm_reference import timm_reference, timms_pixels

FILL = (124, 116, 104)
EXACT = EvaluationTransform((224, 224), "bicubic", 0.875, "center", FILL)
INEXACT = dataclasses.replace(EXACT, exact=False)
SMALL = dataclasses.replace(INEXACT, size=(64, 64), crop_pct=1.0)
PHOTOGRAPHS = [CAT, COFFEE, *sorted((ROOT / "tests" / "photographs").glob("*.jpg"))]


def gaps(data: bytes, how: EvaluationTransform) -> np.ndarray:
    """Between the pixels of a file and timm's, `[H,W,3]`."""
    expected = timms_pixels(decoded_by_pillow(data), how)
    return np.abs(how(open_file(io.BytesIO(data))).astype(int) - expected)


def photograph(path: Path, megapixels: float, **save: Any) -> bytes:
    """Return a JPEG as a camera makes it: sharpened, and with grain."""
    image = Image.open(path).convert("RGB")
    scale = math.sqrt(megapixels * 1e6 / (image.width * image.height))
    size = int(image.width * scale), int(image.height * scale)
    large = image.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.UnsharpMask(3, 150))
    grain = np.random.default_rng(0).normal(0, 8, (size[1], size[0], 1)).astype(np.int16)
    pixels = np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8)
    return encoded(Image.fromarray(pixels), "JPEG", **save)


@pytest.mark.parametrize(
    ("path", "megapixels"),
    [
        (COFFEE, 3),
        pytest.param(CAT, 12, marks=pytest.mark.slow),
        *[pytest.param(path, 3, marks=pytest.mark.slow) for path in PHOTOGRAPHS[2:]],
    ],
)
def test_exact_is_timms(path: Path, megapixels: float) -> None:
    """Equal pixels give equal scores, whatever the network."""
    data = photograph(path, megapixels, quality=85, progressive=megapixels == 3)
    assert not gaps(data, EXACT).any()


@pytest.mark.slow
@pytest.mark.parametrize("path", PHOTOGRAPHS[:4])
def test_inexact_scores(path: Path) -> None:
    """The scores differ by at most 0.04 (`DRAFT_GAP`, rounded up)."""
    data = photograph(path, 8, quality=85)
    gap = gaps(data, INEXACT)
    assert gap.any(), "it was not decoded smaller"
    network = timm_reference()
    seen = network.probabilities(Image.fromarray(INEXACT(open_file(io.BytesIO(data)))))
    exact = network.probabilities(Image.fromarray(EXACT(open_file(io.BytesIO(data)))))
    assert np.abs(seen - exact).max() <= 0.04


@pytest.mark.parametrize(
    ("size", "interpolation"), [((1733, 1501), "bicubic"), ((2000, 3001), "bilinear")]
)
def test_inexact_noise(size: tuple[int, int], interpolation: str) -> None:
    """Noise is the worst case for averaging."""
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG", quality=90)
    assert gaps(data, dataclasses.replace(SMALL, interpolation=interpolation)).mean() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_inexact_upright(orientation: int) -> None:
    """Half-filled pixels at the edges are where the orientation puts them. An input size that is
    not square is resized differently after a quarter turn."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    blocks = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    image = Image.fromarray(blocks).resize((2009, 1201), Image.Resampling.NEAREST)
    data = encoded(image, "JPEG", quality=90, exif=exif)
    for how in (SMALL, dataclasses.replace(SMALL, size=(56, 72))):
        gap = gaps(data, how)
        assert gap.any(), "it was not decoded smaller"
        assert gap.mean() <= 1


@pytest.mark.parametrize("size", [(1600, 1200), (383, 6000), (300, 451)])
def test_small_jpegs_are_not_decoded_smaller(size: tuple[int, int]) -> None:
    """Only images of at least 2 megapixels and 384 pixels a side are decoded smaller; these differ
    by rounding."""
    image = Image.open(CAT).convert("RGB").resize(size)
    assert gaps(encoded(image, "JPEG", quality=90), SMALL).max() <= 2
