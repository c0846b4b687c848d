"""The images of a request, before they are decoded."""

from dataclasses import dataclass

import numpy as np

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Formats of image files that are decoded, by Pillow's names."""


@dataclass(frozen=True)
class EncodedImage:
    """An image file."""

    data: bytes
    """The bytes of the file."""


@dataclass(frozen=True)
class PixelArray:
    """Pixels as a client sent them."""

    array: np.ndarray
    """uint8 `[H,W,C]` with C 1 (grey), 3 (RGB) or 4 (RGBA)."""


ImageSource = EncodedImage | PixelArray
