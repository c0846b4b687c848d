"""GIF; its first frame."""

from mlserver_timm.images.headers.base import ImageHeader, Parts, Reader

IMAGE, EXTENSION, TRAILER = 0x2C, 0x21, 0x3B
GRAPHIC_CONTROL = 0xF9
TRANSPARENT = 1
"""Of the flags in a graphic control; others say what to do before the next frame, for which Pillow
makes an image."""


def accepts(data: bytes) -> bool:
    """Whether it begins as a GIF file."""
    return data.startswith((b"GIF87a", b"GIF89a"))


def read(data: bytes) -> ImageHeader:
    """The header of a GIF file, extensions of the first frame included."""
    reader = Reader(data, "<", 6)
    width, height, flags = reader.numbers("HHB2x")
    reader.skip(_palette(flags))
    screen = data[: reader.position]
    control, parts = b"", Parts("blocks")
    while (introducer := reader.number("B")) == EXTENSION:
        start = reader.position - 1
        label = reader.number("B")
        while size := reader.number("B"):
            reader.skip(size)
            parts.add()
        parts.add()
        if label == GRAPHIC_CONTROL:
            control = _control(data[start : reader.position])
    if introducer != IMAGE:
        raise ValueError("no frame")
    frame = data[reader.position - 1 :]
    left, top, across, down = reader.numbers("4H")
    return ImageHeader(
        format="GIF",
        width=max(width, left + across),  # as Pillow has it, which makes the screen larger
        height=max(height, top + down),
        pixel_bytes=1,
        file=screen + control + frame,
        decoder_bytes=0,
        is_rgb=False,
    )


def _control(extension: bytes) -> bytes:
    flags = bytes(byte & TRANSPARENT for byte in extension[3:4])
    return extension[:3] + flags + extension[4:] if extension[2] else b""


def _palette(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0
