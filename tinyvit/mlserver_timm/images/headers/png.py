"""PNG; of an animated one, the picture that viewers without animation show."""

from mlserver_timm.images.headers.base import ImageHeader, Parts, Reader
from mlserver_timm.images.headers.exif import orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}


def accepts(data: bytes) -> bool:
    """Whether it begins as a PNG file."""
    return data.startswith(SIGNATURE)


def read(data: bytes) -> ImageHeader:
    """The header of a PNG file."""
    reader = Reader(data, ">", len(SIGNATURE))
    kept, kinds, exif, parts = [SIGNATURE], set(), None, Parts("chunks")
    while not reader.at_end:  # decoding tells what is missing
        parts.add()
        start = reader.position
        length, kind = reader.numbers("I4s")
        if kind == b"IHDR" and kind in kinds:  # Pillow heeds the last
            raise ValueError("two IHDRs")
        if kind == b"eXIf" and exif is None:
            exif = data[start + 8 : start + 8 + length]
        reader.skip(length + 4)
        if kind in KEPT:
            kept.append(data[start : reader.position])
            kinds.add(kind)
        if kind == b"IEND":
            break
    header = Reader(kept[1], ">")
    length, kind, width, height, depth, colour = header.numbers("I4sIIBB")
    if kind != b"IHDR" or length != 13:
        raise ValueError("no IHDR")
    return ImageHeader(
        format="PNG",
        width=width,
        height=height,
        pixel_bytes=_pixel_bytes(colour, depth),
        file=b"".join(kept),
        decoder_bytes=2 * (width * CHANNELS[colour] * depth // 8 + 1),
        is_rgb=colour == RGB and b"tRNS" not in kinds,
        orientation=orientation(exif or b""),
    )


def _pixel_bytes(colour: int, depth: int) -> int:
    if colour not in (GREY, PALETTE):
        return 4
    return 2 if depth == 16 else 1
