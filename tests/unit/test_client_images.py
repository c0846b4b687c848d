"""The client says which file Pillow cannot read, and goes on with the next one."""

import contextlib
import random

import numpy as np
from PIL import Image

from client.images import ClientError, read_pixels
from tests.support.clients import CAT, encoded


def test_damaged_files_are_images_or_client_errors() -> None:
    """Pillow raises RuntimeError for one of these AVIF files."""
    image = Image.open(CAT).convert("RGB").resize((64, 64))
    generator = random.Random(0)
    for kind in ("AVIF", "WEBP", "PNG", "TIFF", "GIF"):
        data = encoded(image, kind)
        for _ in range(300):
            damaged = bytearray(data)
            for _ in range(3):
                position = generator.randrange(len(data) // 2, len(data))
                damaged[position] = generator.randrange(256)
            with contextlib.suppress(ClientError):
                assert isinstance(read_pixels(bytes(damaged)), np.ndarray)
