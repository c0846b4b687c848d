"""The network's pixels are those of timm's evaluation transform."""

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import assume, given, strategies as st
from PIL import Image

from mlserver_timm.images.decode import UprightImage, open_file
from mlserver_timm.images.transforms import MAX_ASPECT, EvaluationTransform
from tests.support.clients import CAT, encoded
from tests.support.images import decoded, decoded_by_pillow
from tests.support.timm_reference import timms_pixels

FILL = (124, 116, 104)


def transform(
    size: tuple[int, int] = (64, 64),
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    crop_mode: str = "center",
) -> EvaluationTransform:
    return EvaluationTransform(size, interpolation, crop_pct, crop_mode, FILL)


def photo(width: int, height: int) -> Image.Image:
    return Image.open(CAT).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


edges = st.one_of(st.integers(1, 40), st.integers(40, 300), st.sampled_from([63, 64, 65, 500]))


@given(
    width=edges,
    height=edges,
    size=st.sampled_from([(64, 64), (56, 72), (72, 56), (224, 224), (33, 47)]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    crop_pct=st.sampled_from([0.875, 0.9, 0.95, 1.0]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
)
def test_pixels_are_timms(
    width: int,
    height: int,
    size: tuple[int, int],
    interpolation: str,
    crop_pct: float,
    crop_mode: str,
) -> None:
    """Images from smaller than the crop to strips, in every mode of timm's checkpoints."""
    assume(max(width, height) < MAX_ASPECT * min(width, height))  # beyond, see test_strips
    how = transform(size, interpolation, crop_pct, crop_mode)
    image = photo(width, height)
    pixels = how(open_file(io.BytesIO(encoded(image))))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*size, 3)
    np.testing.assert_array_equal(pixels, timms_pixels(image, how))


@given(
    width=edges,
    height=edges,
    size=st.sampled_from([(64, 64), (56, 72), (224, 224)]),
    crop_pct=st.sampled_from([0.875, 0.95, 1.0]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
)
def test_pixels_are_nearly_timms(
    width: int, height: int, size: tuple[int, int], crop_pct: float, crop_mode: str
) -> None:
    """For an inexact engine, only what the crop keeps is resized."""
    assume(max(width, height) < MAX_ASPECT * min(width, height))
    how = dataclasses.replace(transform(size, "bicubic", crop_pct, crop_mode), exact=False)
    image = photo(width, height)
    pixels = how(open_file(io.BytesIO(encoded(image))))
    off = np.abs(pixels.astype(int) - timms_pixels(image, how))
    assert off.max() <= 2 and off.mean() <= 0.25


@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
@pytest.mark.parametrize(
    "size", [(1, 4000), (4000, 1), (3, 250), (250, 3), (1, 299), (7, 3001), (40, 3000), (65, 1)]
)
def test_strips(size: tuple[int, int], crop_pct: float) -> None:
    """The middle is timm's, although the rest is never resized."""
    how = transform(crop_pct=crop_pct)
    image = photo(*size)
    pixels = how(open_file(io.BytesIO(encoded(image))))
    np.testing.assert_allclose(pixels.astype(int), timms_pixels(image, how), rtol=0, atol=1)


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1)])
def test_strips_with_a_border(size: tuple[int, int]) -> None:
    """A line stays a line; timm would resize it to nothing and fail."""
    how = transform(crop_mode="border")
    pixels = how(open_file(io.BytesIO(encoded(Image.new("RGB", size, "red")))))
    assert (pixels == (255, 0, 0)).all(axis=2).sum() == 64
    assert (pixels == FILL).all(axis=2).sum() == 63 * 64


def test_any_size_is_resized_as_pillow_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """One edge after the other, only what is kept, and in parts: equal to the last bit."""
    monkeypatch.setattr("mlserver_timm.images.decode.BAND_PIXELS", 2**9)
    monkeypatch.setattr("mlserver_timm.images.resize.LARGE", 2**10)
    generator = np.random.default_rng(0)
    noise = Image.fromarray(generator.integers(0, 256, (160, 160, 3), np.uint8))
    ways = [
        transform((24, 24), interpolation, crop_pct, crop_mode)
        for interpolation in ("bicubic", "bilinear", "lanczos")
        for crop_pct in (0.875, 0.9, 1.0)
        for crop_mode in ("center", "border")
    ]
    for number in range(1000):
        width, height = generator.integers(3, 161, 2).tolist()
        how = ways[number % len(ways)]
        image = noise.crop((0, 0, width, height))
        _, rows, columns = how._kept((0, 0, width, height))
        filter = Image.Resampling[how.interpolation.upper()]
        whole = how._crop(image.resize((columns, rows), filter))
        for threads in {1, 2 + number % 30 if number % 4 == 0 else 1}:
            upright = UprightImage(image)
            parts = how._crop(how._resize(upright, (0, 0, width, height), threads))
            assert whole == parts, (width, height, how, threads)


@pytest.mark.parametrize("size", [(451, 300), (3000, 2000), (2000, 3000)])
def test_photographs_are_timms_on_several_threads(size: tuple[int, int]) -> None:
    image, how = photo(*size), transform((224, 224), crop_pct=0.875)
    pixels = how(open_file(io.BytesIO(encoded(image))), threads=3)
    assert (pixels == timms_pixels(image, how)).all()


@pytest.mark.parametrize("size", [(1800, 1400), (90, 120)])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_photographs_are_timms(size: tuple[int, int], orientation: int) -> None:
    """Large images are turned and resized a part at a time, from any orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(*size), "JPEG", exif=exif)
    how = transform((56, 72), crop_pct=0.875)
    for threads in (1, 2):
        expected = timms_pixels(decoded_by_pillow(data), how)
        np.testing.assert_array_equal(how(open_file(io.BytesIO(data)), threads), expected)


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "I;16", "CMYK"])
def test_converted_photographs_are_timms(mode: str) -> None:
    """Large images are converted to RGB a part at a time, too."""
    image = photo(1000, 800)
    grey = np.asarray(image.convert("L"))
    converted = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else image
    converted = converted if mode == "I;16" else converted.convert(mode)
    if mode in ("LA", "RGBA"):
        converted.putalpha(Image.fromarray(grey))
    kind = "TIFF" if mode == "CMYK" else "PNG"
    data, how = encoded(converted, kind), transform(crop_pct=0.875)
    np.testing.assert_array_equal(
        how(open_file(io.BytesIO(data))), timms_pixels(decoded(data), how)
    )


def test_strips_fill_no_memory() -> None:
    """Resized whole, this line would take a gigabyte."""
    line = encoded(Image.new("RGB", (60_000, 1), "red"))
    before = peak_memory()
    pixels = transform()(open_file(io.BytesIO(line)))
    assert (pixels == (255, 0, 0)).all()
    assert peak_memory() - before < 150 * 2**20


def peak_memory() -> int:
    """Return the peak memory of this process in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
