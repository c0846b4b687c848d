"""Images as they arrive in a request, before anything of them is decoded."""

from dataclasses import dataclass

import numpy as np

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""File formats that are decoded."""


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file; base64 is already decoded."""

    data: bytes


@dataclass(frozen=True)
class PixelArray:
    """Pixels: uint8 `[H,W,C]` with C 1 (grey), 3 (RGB) or 4 (RGBA)."""

    array: np.ndarray


ImageSource = EncodedImage | PixelArray
