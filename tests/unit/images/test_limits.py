"""The memory granted for an image suffices to decode it."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlserver_timm.images.limits import memory_for_file, memory_for_image
from mlserver_timm.images.pool import STANDING_MEMORY, DecoderLimits, DecoderPool
from mlserver_timm.images.sources import ImageSource
from mlserver_timm.images.transforms import EvaluationTransform
from tests.support.clients import CAT, encoded

TRANSFORM = EvaluationTransform((224, 224), "bicubic", 0.875, "center", (0, 0, 0))
SIZE = (3000, 2250)

CASES: dict[str, tuple[str, str, dict[str, Any], float]] = {
    "jpeg": ("JPEG", "RGB", {}, 0),
    "jpeg-turned": ("JPEG", "RGB", {"orientation": 6}, 0),
    "jpeg-grey": ("JPEG", "L", {}, 0),
    "jpeg-cmyk": ("JPEG", "CMYK", {}, 0),
    "jpeg-progressive": ("JPEG", "RGB", {"progressive": True}, 1.5),
    "jpeg-progressive-444": ("JPEG", "RGB", {"progressive": True, "subsampling": 0}, 3),
    "png": ("PNG", "RGB", {"compress_level": 1}, 0),
    "png-rgba": ("PNG", "RGBA", {"compress_level": 1}, 0),
    "png-palette": ("PNG", "P", {"compress_level": 1}, 0),
    "png-16-bits": ("PNG", "I;16", {"compress_level": 1}, 0),
    "webp": ("WEBP", "RGB", {"method": 0}, 0),
    "webp-lossless": ("WEBP", "RGBA", {"method": 0, "lossless": True}, 0),
    "gif": ("GIF", "P", {"transparency": 3}, 0),
    "bmp": ("BMP", "RGB", {}, 0),
    "tiff": ("TIFF", "RGB", {}, 0),
    "tiff-in-one-strip": ("TIFF", "RGB", {"compression": "tiff_lzw", "strip_size": 2**30}, 0),
    "avif": ("AVIF", "RGB", {"speed": 10}, 0),
    "avif-alpha-444": ("AVIF", "RGBA", {"speed": 10, "subsampling": "4:4:4"}, 0),
}


def photograph(mode: str) -> Image.Image:
    """Return an image with grain, which decoders cannot shortcut."""
    pixels = np.asarray(Image.open(CAT).convert("RGB").resize(SIZE)).astype(int)
    pixels += np.random.default_rng(0).integers(-8, 9, (*pixels.shape[:2], 1))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


async def decode_within(source: ImageSource, memory: int, threads: int) -> None:
    """Decode in a pool that has just that memory for one image."""
    pool = DecoderPool(DecoderLimits(threads=2, memory=memory + 2 * STANDING_MEMORY))
    await pool.start()
    try:
        decoded = await pool.decode(source, TRANSFORM, 10**8, images=2 // threads)
        assert decoded.pixels.std() > 10
    finally:
        await pool.close()


QUICK = ("jpeg-turned", "png-16-bits", "tiff")
"""Cases that `make test` decodes, too: the others take seconds to encode."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow, id=n) for n in CASES],
)
async def test_memory_for_files(name: str) -> None:
    kind, mode, save, coefficients = CASES[name]
    if "orientation" in save:
        save = {"exif": Image.Exif()}
        save["exif"][0x0112] = 6
    data = encoded(photograph(mode), kind, **save)
    memory = memory_for_file(len(data), kind) + memory_for_image(kind, mode, *SIZE, coefficients)
    await decode_within(data, memory, threads=1)


@pytest.mark.parametrize(("mode", "threads"), [("L", 2), ("RGB", 1), ("RGBA", 2)])
async def test_memory_for_arrays(mode: str, threads: int) -> None:
    array = np.asarray(photograph(mode))
    array = array.reshape(*array.shape[:2], -1)
    memory = memory_for_file(array.nbytes, "array") + memory_for_image("array", mode, *SIZE)
    await decode_within(array, memory, threads)


def test_photographs_of_12_megapixels_use_all_cores_by_default() -> None:
    """Phone photographs in files of 8 MB, on 1 to 16 cores."""
    from mlserver_timm.settings import DECODE_MEMORY, DECODE_MEMORY_A_THREAD

    needed = memory_for_file(8_000_000, "JPEG") + memory_for_image("JPEG", "RGB", 4000, 3000)
    for threads in range(1, 17):
        memory = DECODE_MEMORY + threads * DECODE_MEMORY_A_THREAD
        assert threads * needed + STANDING_MEMORY <= memory, threads


def test_photographs_of_64_megapixels_are_decoded_by_default() -> None:
    """A phone's 9248x6936, in a file of 20 MB, on one core and more."""
    from mlserver_timm.settings import DECODE_MEMORY, DECODE_MEMORY_A_THREAD

    needed = memory_for_file(20_000_000, "JPEG") + memory_for_image("JPEG", "RGB", 9248, 6936)
    for threads in (1, 2):
        memory = DECODE_MEMORY + threads * DECODE_MEMORY_A_THREAD
        assert needed + threads * STANDING_MEMORY <= memory, threads
