"""The images of a request, before they are decoded."""

import numpy as np

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Formats of image files that are decoded, by Pillow's names."""

ImageSource = bytes | np.ndarray
"""An image file, or pixels as a client sent them: uint8 `[H,W,C]` with C 1 (grey), 3 (RGB) or 4
(RGBA)."""
