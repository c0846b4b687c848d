"""x"""

import io
from typing import Any

from PIL import Image

from clients import COFFEE

CAT = COFFEE.with_name("cat.jpg")


LIMIT = 64_000_000


def encoded(picture: Image.Image, kind: str = "PNG", **save: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **save)
    return buffer.getvalue()
