"""BMP, uncompressed."""

from mlserver_timm.errors import InvalidImage
from mlserver_timm.images.headers.base import ImageHeader, Reader, check_row

RAW, RLE8, RLE4, BIT_FIELDS, ALPHA_BIT_FIELDS = 0, 1, 2, 3, 6


def accepts(data: bytes) -> bool:
    """Whether it begins as a BMP file."""
    return data.startswith(b"BM")


def read(data: bytes) -> ImageHeader:
    """The header of a BMP file. Pillow decodes run lengths in Python, a second a megapixel and
    more, so they are refused."""
    reader = Reader(data, "<", 14)
    header_size = reader.number("I")
    if header_size == 12:  # OS/2
        width, height, _, bits = reader.numbers("HHHH")
        compression = RAW
    else:
        width, height, _, bits, compression = reader.numbers("iiHHI")
    if compression in (RLE8, RLE4):
        raise InvalidImage(
            "BMP images with run-length encoding are not decoded; send PNG or an uncompressed BMP."
        )
    if compression not in (RAW, BIT_FIELDS, ALPHA_BIT_FIELDS):
        raise ValueError("no compression as viewers know it")
    check_row(width * bits // 8)
    return ImageHeader(
        format="BMP",
        width=width,
        height=abs(height),
        pixel_bytes=1 if bits <= 8 else 4,
        file=data,
        is_rgb=bits in (16, 24),
    )
