"""WebP, lossy and lossless; its first frame."""

from mlserver_timm.images.headers.base import ImageHeader, Parts, Reader
from mlserver_timm.images.headers.exif import orientation

LOSSLESS, LOSSY, EXTENDED = b"VP8L", b"VP8 ", b"VP8X"
PER_PIXEL = 17
"""Bytes a pixel of libwebp's two canvases, its alpha plane, the copy for Python and Pillow's own
image; the latter is counted elsewhere."""
LOSSLESS_PER_PIXEL = 4


def accepts(data: bytes) -> bool:
    """Whether it begins as a WebP file."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def read(data: bytes) -> ImageHeader:
    """The header of a WebP file."""
    reader = Reader(data, "<", 12)
    size, exif, kinds, parts = None, None, set(), Parts("chunks")
    while reader.position + 8 <= len(data):
        parts.add()
        kind, length = reader.numbers("4sI")
        start = reader.position
        kinds.add(kind if kind != b"ANMF" else data[start + 16 : start + 20])
        if size is None:
            size = _size(kind, data[start : start + 10])
        if kind == b"EXIF" and exif is None:
            exif = data[start : start + length]
        reader.skip(length + length % 2)
    if size is None:
        raise ValueError("no size")
    lossless = LOSSLESS in kinds or b"ALPH" in kinds
    return ImageHeader(
        format="WEBP",
        width=size[0],
        height=size[1],
        pixel_bytes=4,
        file=data,
        decoder_bytes=size[0] * size[1] * (PER_PIXEL - 4 + LOSSLESS_PER_PIXEL * lossless),
        is_rgb=False,
        orientation=orientation(exif or b""),
    )


def _size(kind: bytes, head: bytes) -> tuple[int, int] | None:
    if kind == EXTENDED:
        reader = Reader(head, "<", 4)
        across, down = reader.take(3), reader.take(3)
        return int.from_bytes(across, "little") + 1, int.from_bytes(down, "little") + 1
    if kind == LOSSY and head[3:6] == b"\x9d\x01\x2a":
        width, height = Reader(head, "<", 6).numbers("HH")
        return width & 0x3FFF, height & 0x3FFF
    if kind == LOSSLESS and head[:1] == b"\x2f":
        bits = Reader(head, "<", 1).number("I")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None
