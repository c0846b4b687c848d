"""Image files decoded in the test's own process."""

import io

from PIL import Image, ImageOps

from mlserver_timm.images.decode import (
    UprightImage,
    configure_pillow,
    load,
    open_file,
    orientation_of,
)

configure_pillow()


def decoded(data: bytes) -> Image.Image:
    """Return the RGB image in a file as a decoder sees it: upright, over white."""
    image = open_file(io.BytesIO(data))
    load(image)
    return UprightImage(image, orientation_of(image)).whole()


def decoded_by_pillow(data: bytes) -> Image.Image:
    """Return the RGB image in a file, upright, by Pillow's own functions."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
