"""Every kind of image is seen as a viewer shows it, or refused."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlserver_timm.errors import InvalidImage
from mlserver_timm.images.decode import check_size, from_array, open_image, to_rgb
from tests.support.clients import encoded, image_file

LIMIT = 64_000_000
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 7, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (9, 7, 1), np.uint8)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha / 255
    return colour * share + 255 * (1 - share)


def seen(data: bytes) -> np.ndarray:
    picture = open_image(data, LIMIT).decode()
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(float)


@pytest.mark.parametrize(("kind", "save"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_alpha_over_white(kind: str, save: dict[str, Any]) -> None:
    pixels = np.concatenate([COLOUR, ALPHA], axis=2)
    data = encoded(Image.fromarray(pixels), kind, **save, **({"exact": True} if save else {}))
    np.testing.assert_allclose(seen(data), over_white(COLOUR, ALPHA), rtol=0, atol=1)
    array = np.asarray(from_array(pixels)).astype(float)
    np.testing.assert_allclose(array, over_white(COLOUR, ALPHA), rtol=0, atol=1)


def test_grey_with_alpha() -> None:
    grey = COLOUR[:, :, :1]
    data = encoded(Image.fromarray(np.concatenate([grey, ALPHA], axis=2), "LA"))
    expected = over_white(grey, ALPHA).repeat(3, axis=2)
    np.testing.assert_allclose(seen(data), expected, rtol=0, atol=1)


def test_sixteen_bits() -> None:
    """Scaled down, where a plain conversion in Pillow would clip nearly all to white."""
    values = RNG.integers(0, 65536, (9, 7)).astype(np.uint16)
    values[0, :3] = 0, 256, 65535
    pixels = seen(encoded(Image.fromarray(values)))
    assert (pixels[:, :, 0] == pixels[:, :, 1]).all() and (pixels[:, :, 0] == pixels[:, :, 2]).all()
    np.testing.assert_allclose(pixels[:, :, 0], values / 257, rtol=0, atol=0.51)


def paletted() -> Image.Image:
    """Red, green and blue by index."""
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putdata([0, 1, 2])
    return picture


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_palette(kind: str) -> None:
    assert seen(encoded(paletted(), kind)).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_transparency(kind: str) -> None:
    data = encoded(paletted(), kind, transparency=1)
    assert seen(data).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_palette_with_alpha() -> None:
    data = encoded(paletted(), transparency=bytes([255, 0, 51]))
    assert seen(data).tolist() == [[[255, 0, 0], [255, 255, 255], [204, 204, 255]]]


def test_transparent_colour() -> None:
    """tRNS names one colour of an RGB or grey PNG that is not there."""
    picture = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert seen(encoded(picture, transparency=(1, 2, 3))).tolist() == [[[255] * 3, [4, 5, 6]]]
    grey = Image.fromarray(np.array([[1, 4]], np.uint8))
    assert seen(encoded(grey, transparency=1)).tolist() == [[[255] * 3, [4] * 3]]


def test_one_bit() -> None:
    picture = Image.fromarray(np.array([[True, False]]))
    for kind in ("PNG", "BMP"):
        assert seen(encoded(picture, kind)).tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame(kind: str) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    frames = [Image.new("RGB", (8, 8), colour) for colour in colours]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert (seen(data) == (255, 0, 0)).all()


def test_cmyk() -> None:
    """Ink to light, as far as it goes without a colour profile."""
    picture = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    data = encoded(picture, "JPEG", quality=100, subsampling=0)
    np.testing.assert_allclose(seen(data)[8, 8], (0, 255, 255), atol=3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_any_mode(mode: str) -> None:
    picture = to_rgb(Image.new(mode, (5, 4)))
    assert picture.mode == "RGB" and picture.size == (5, 4)


# A letter F: no two of its orientations look alike.
F = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]], np.uint8) * 255
STORED = {
    1: F,
    2: F[:, ::-1],
    3: F[::-1, ::-1],
    4: F[::-1],
    5: F.T,
    6: np.rot90(F),
    7: F[::-1, ::-1].T,
    8: np.rot90(F, -1),
}
"""How a camera that was held so stores an upright F, by the orientation it notes."""


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_orientation(kind: str, orientation: int) -> None:
    stored = STORED[orientation].repeat(16, axis=0).repeat(16, axis=1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = seen(encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif))
    assert pixels.shape == (80, 48, 3)
    assert (((pixels[8::16, 8::16] > 127) * 255) == F[:, :, None]).all()


@pytest.mark.parametrize("count", [1, 3, 4])
def test_from_array(count: int) -> None:
    pixels = RNG.integers(0, 256, (6, 5, count), np.uint8)
    if count == 4:
        pixels[:, :, 3] = 255
    picture = from_array(pixels)
    expected = pixels.repeat(3, axis=2) if count == 1 else pixels[:, :, :3]
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), expected)


def test_limit_is_told_by_the_header() -> None:
    data = image_file("PNG", (100, 80))
    assert open_image(data, 8000).size == (100, 80)
    with pytest.raises(InvalidImage, match="100x80 .* at most 7999"):
        open_image(data, 7999)


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (-1, 5), (101, 100)])
def test_sizes_that_are_refused(width: int, height: int) -> None:
    with pytest.raises(InvalidImage):
        check_size(width, height, 10_000)


def test_sizes_that_are_accepted() -> None:
    for size in ((1, 1), (100, 100), (10_000, 1)):
        check_size(*size, 10_000)
