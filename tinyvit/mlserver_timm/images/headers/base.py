"""What every format's reader returns, and refuses."""

import struct
from dataclasses import dataclass
from typing import Any

from mlserver_timm.errors import InvalidImage

MAX_PARTS = 10_000
"""Segments, chunks, blocks or boxes of a file. Files of 64 MiB in PNG's usual 8 KiB have 8,000;
Pillow walks them in Python, at 10 µs each."""

MAX_ROW = 2**20
"""Bytes of an uncompressed row. Pillow reads 64 KiB at once, and copies what it has of a longer row
each time."""


class TooCostly(InvalidImage):
    """Of such a size, or for so few bytes, that decoding it would take what others wait for."""


@dataclass(frozen=True)
class ImageHeader:
    """The size of an image file and what decoding it takes, told without decoding."""

    format: str
    width: int
    height: int
    """Pixels, as stored, before `orientation` is heeded."""
    pixel_bytes: int
    """Bytes that Pillow holds for each pixel: 1, 2 or 4."""
    file: bytes
    """What Pillow gets: the parts that make the pixels."""
    decoder_bytes: int = 0
    """What the decoder holds besides Pillow's image while it is at work."""
    is_rgb: bool = True
    """Whether decoding gives RGB, with nothing transparent."""
    orientation: int = 1
    """1 to 8, as EXIF counts them."""


class Reader:
    """Reads numbers and blocks out of bytes; whatever is not there raises ValueError."""

    def __init__(self, data: bytes, byte_order: str, position: int = 0) -> None:
        self.data = data
        self.position = position
        self._byte_order = byte_order

    def numbers(self, layout: str) -> tuple[Any, ...]:
        """The next numbers, as struct lays them out."""
        form = struct.Struct(self._byte_order + layout)
        return form.unpack(self.take(form.size))

    def number(self, layout: str) -> Any:
        """The next number."""
        return self.numbers(layout)[0]

    def take(self, size: int) -> bytes:
        """The next bytes."""
        block = self.data[self.position : self.position + size]
        if size < 0 or len(block) < size:
            raise ValueError("the file ends too early")
        self.position += size
        return block

    def skip(self, size: int) -> None:
        """Passes over bytes, also over the end."""
        self.position += size

    @property
    def at_end(self) -> bool:
        """Whether nothing is left."""
        return self.position >= len(self.data)


class Parts:
    """Counts the parts of a file as they are visited, all together."""

    def __init__(self, what: str) -> None:
        """`what` they are, in the plural."""
        self._what = what
        self._count = 0

    def add(self, count: int = 1) -> None:
        """Raises TooCostly where they are more than `MAX_PARTS` now."""
        self._count += count
        if self._count > MAX_PARTS:
            raise TooCostly(
                f"The file has more than {MAX_PARTS} {self._what}, which no picture needs."
            )


def check_row(size: int) -> None:
    """Raises TooCostly for an uncompressed image with rows of so many bytes."""
    if size > MAX_ROW:
        raise TooCostly(f"Each row of the image has more than {MAX_ROW} bytes; send it as PNG.")
