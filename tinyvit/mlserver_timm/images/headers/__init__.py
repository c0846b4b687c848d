"""What the bytes of an image file say of it, read before Pillow sees any of them.

Each format has a module that walks the file's own structure in bounded time. It tells the size and
what decoding will cost, refuses what costs more than a picture can, and hands on to Pillow only the
parts that make the pixels: no metadata, no further frame, no further page.
"""

import struct
from collections.abc import Callable

from mlserver_timm.errors import InvalidImage
from mlserver_timm.images.headers import avif, bmp, gif, jpeg, png, tiff, webp
from mlserver_timm.images.headers.base import ImageHeader, TooCostly

Reader = Callable[[bytes], ImageHeader]

READERS: dict[str, tuple[Callable[[bytes], bool], Reader]] = {
    "JPEG": (jpeg.accepts, jpeg.read),
    "PNG": (png.accepts, png.read),
    "WEBP": (webp.accepts, webp.read),
    "GIF": (gif.accepts, gif.read),
    "BMP": (bmp.accepts, bmp.read),
    "TIFF": (tiff.accepts, tiff.read),
    "AVIF": (avif.accepts, avif.read),
}
"""All that is decoded: how each begins, and what reads its header. Pillow runs Ghostscript for EPS
and follows files for some other formats."""

FORMATS = tuple(READERS)


def read_header(data: bytes) -> ImageHeader | None:
    """The header of an image file; None where it is none, or a broken one, of `FORMATS`.

    Raises InvalidImage for one whose decoding would cost too much.
    """
    for accepts, read in READERS.values():
        if accepts(data):
            try:
                return read(data)
            except InvalidImage:
                raise
            except (ValueError, LookupError, ArithmeticError, struct.error):  # broken
                return None
    return None


__all__ = ["FORMATS", "ImageHeader", "TooCostly", "read_header"]
