"""TIFF: the first page, uncompressed or losslessly compressed."""

import struct
from dataclasses import dataclass

from ..errors import InvalidImage
from .base import ImageHeader, Reader, TooCostly

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_SIZES, PLANAR = (
    273,
    274,
    277,
    278,
    279,
    284,
)
PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES = (
    317,
    320,
    322,
    323,
    324,
    325,
)
EXTRA_SAMPLES, SAMPLE_FORMAT = 338, 339
KEPT = {
    *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, STRIP_OFFSETS, SAMPLES),
    *(ROWS_PER_STRIP, STRIP_SIZES, PLANAR, PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT),
    *(TILE_OFFSETS, TILE_SIZES, EXTRA_SAMPLES, SAMPLE_FORMAT),
}
"""Tags that pixels depend on; none of them leads to another page or file."""

UNCOMPRESSED = 1
LISTS = {BITS, STRIP_OFFSETS, STRIP_SIZES, COLOUR_MAP, TILE_OFFSETS, TILE_SIZES} | {
    EXTRA_SAMPLES,
    SAMPLE_FORMAT,
}
"""Of the others one number each; Pillow warns of more."""

COMPRESSIONS = {UNCOMPRESSED, 5, 8, 32773, 32946}
"""None, LZW, deflate, PackBits, deflate by its older number."""
GREY, RGB, PALETTE, CMYK = (0, 1), 2, 3, 5
SIZES = {1: 1, 3: 2, 4: 4}
LAYOUTS = {1: "B", 3: "H", 4: "I"}
"""Of a number in a byte, two or four, by the type's number."""

MAX_TAGS = 1000
MAX_STRIPS = 65_536
"""Strips or tiles; those of an uncompressed file are visited in Python."""
MAX_VALUES = 3 * 65_536


@dataclass(frozen=True)
class _Directory:
    """The tags of a page: numbers by their tag, and the entries as they are in the file."""

    reader: Reader
    entries: dict[int, bytes]
    layout: str

    def number(self, tag: int, otherwise: int) -> int:
        """The first number of a tag."""
        entry = self.entries.get(tag)
        if entry is None:
            return otherwise
        kind, count = struct.unpack(self.layout + "2xHI4x", entry)
        size = SIZES[kind] * count
        if not 0 < count <= (MAX_VALUES if tag in LISTS else 1):
            raise ValueError("no value, or too many")
        where = struct.unpack(self.layout + "8xI", entry)[0]
        value = entry[8:12] if size <= 4 else self.reader.data[where : where + SIZES[kind]]
        return int(struct.unpack(self.layout + LAYOUTS[kind], value[: SIZES[kind]])[0])

    def count(self, tag: int) -> int:
        """How many numbers a tag has."""
        entry = self.entries.get(tag)
        return struct.unpack(self.layout + "4xI4x", entry)[0] if entry else 0


def accepts(data: bytes) -> bool:
    """Whether it begins as a TIFF file."""
    return data.startswith((b"II*\0", b"MM\0*"))


def read(data: bytes) -> ImageHeader:
    """The header of a TIFF file."""
    page = _directory(data)
    for tag in page.entries:
        page.number(tag, 0)
    compression = page.number(COMPRESSION, UNCOMPRESSED)
    if compression not in COMPRESSIONS:
        raise InvalidImage(
            "Of TIFF images only those without compression or with LZW, deflate or PackBits are "
            "decoded; send another of these, or PNG."
        )
    width, height = page.number(WIDTH, 0), page.number(HEIGHT, 0)
    colour, samples, bits = (
        page.number(tag, otherwise)
        for tag, otherwise in ((PHOTOMETRIC, 0), (SAMPLES, 1), (BITS, 1))
    )
    if colour not in (*GREY, RGB, PALETTE, CMYK) or samples > 5 or bits not in (1, 2, 4, 8, 16):
        raise ValueError("no pixels as viewers know them")
    if page.number(SAMPLE_FORMAT, 1) != 1:
        raise ValueError("numbers that are no light")
    part = _part_pixels(page, width, height)
    return ImageHeader(
        format="TIFF",
        width=width,
        height=height,
        pixel_bytes=4 if samples > 1 else 2 if bits == 16 else 1,
        file=_first_page(data, page),
        decoder_bytes=part * samples * bits // 8 if compression != UNCOMPRESSED else 0,
        is_rgb=colour == RGB and samples == 3,
        orientation=max(1, min(8, page.number(ORIENTATION, 1))),
    )


def _directory(data: bytes) -> _Directory:
    layout = "<" if data.startswith(b"II") else ">"
    reader = Reader(data, layout, 4)
    reader.position = reader.number("I")
    tags = reader.number("H")
    if tags > MAX_TAGS:
        raise TooCostly(f"The TIFF image has more than {MAX_TAGS} tags, which no picture needs.")
    entries = {}
    for _ in range(tags):
        entry = reader.take(12)
        tag = struct.unpack(layout + "H10x", entry)[0]
        if tag in KEPT or tag == ORIENTATION:
            entries[tag] = entry
    return _Directory(reader, entries, layout)


def _part_pixels(page: _Directory, width: int, height: int) -> int:
    """Pixels of a strip or tile, which libtiff decodes in one piece."""
    across, down = page.number(TILE_WIDTH, 0), page.number(TILE_HEIGHT, 0)
    if across and down:
        columns, rows = -(-width // across), -(-height // down)
        if columns * rows * across * down > 4 * width * height + 2**20:
            raise TooCostly("The tiles of the TIFF image are far larger than what it shows.")
    else:
        across, down = width, max(1, min(height, page.number(ROWS_PER_STRIP, height)))
        columns, rows = 1, -(-height // down)
    parts = max(columns * rows, page.count(STRIP_OFFSETS), page.count(TILE_OFFSETS))
    if parts > MAX_STRIPS:
        raise TooCostly(f"The TIFF image has more than {MAX_STRIPS} strips or tiles.")
    return across * down


def _first_page(data: bytes, page: _Directory) -> bytes:
    """The file with one page and no tag but those that pixels depend on."""
    entries = [entry for tag, entry in sorted(page.entries.items()) if tag in KEPT]
    start = len(data) + len(data) % 2
    head = data[:4] + struct.pack(page.layout + "I", start)
    count = struct.pack(page.layout + "H", len(entries))
    return b"".join([head, data[8:], bytes(len(data) % 2), count, *entries, bytes(4)])
