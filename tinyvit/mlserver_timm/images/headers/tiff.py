"""TIFF: the first page, uncompressed or losslessly compressed."""

import struct
from dataclasses import dataclass

from mlserver_timm.errors import InvalidImage
from mlserver_timm.images.headers.base import ImageHeader, Reader, TooCostly, check_row

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

HEADER_SIZE = 8
BIG = (b"II+\0", b"MM\0+")
UNCOMPRESSED, UNSIGNED, SEPARATE_PLANES = 1, 1, 2
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

DEPTHS = (1, 2, 4, 8, 16)

MAX_TAGS = 1000
MAX_STRIPS = 65_536
"""Strips or tiles; those of an uncompressed file are visited in Python."""
MAX_VALUES = 3 * 65_536

NOT_PICTURES = (
    "Of TIFF images those of 1 to 16 bits in grey, RGB, a palette or CMYK are decoded, and no "
    "BigTIFF; send another of these, or PNG."
)


@dataclass(frozen=True)
class _Directory:
    """The tags of a page: numbers by their tag, and the entries as they are in the file."""

    numbers: dict[int, tuple[int, ...]]
    entries: dict[int, bytes]
    layout: str

    def number(self, tag: int, otherwise: int) -> int:
        """The first number of a tag."""
        return self.numbers.get(tag, (otherwise,))[0]


@dataclass(frozen=True)
class _Parts:
    """Strips or tiles, each of which is decoded in one piece."""

    columns: int
    rows: int
    planes: int
    width: int
    height: int
    row_bytes: int
    """Of one part, in one plane."""

    @property
    def count(self) -> int:
        return self.columns * self.rows * self.planes

    def sizes(self, height: int) -> list[int]:
        """Bytes of each, uncompressed, of an image so high: the lowest are cut."""
        full = self.row_bytes * self.height
        lowest = self.row_bytes * (height - (self.rows - 1) * self.height)
        return self.planes * (self.columns * (self.rows - 1) * [full] + self.columns * [lowest])


def accepts(data: bytes) -> bool:
    """Whether it begins as a TIFF or BigTIFF file."""
    return data.startswith((b"II*\0", b"MM\0*", *BIG))


def read(data: bytes) -> ImageHeader:
    """The header of a TIFF file."""
    if data.startswith(BIG):
        raise InvalidImage(NOT_PICTURES)
    page = _directory(data)
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
    if (
        colour not in (*GREY, RGB, PALETTE, CMYK)
        or samples > 5
        or bits not in DEPTHS
        or page.number(SAMPLE_FORMAT, UNSIGNED) != UNSIGNED
    ):
        raise InvalidImage(NOT_PICTURES)
    parts = _parts(page, width, height, samples * bits)
    if compression == UNCOMPRESSED:
        _check_uncompressed(page, parts, height)
        decoder_bytes = 0
    else:
        _check_compressed(page, len(data))
        decoder_bytes = parts.width * parts.height * samples * bits // 8
    return ImageHeader(
        format="TIFF",
        width=width,
        height=height,
        pixel_bytes=4 if samples > 1 else 2 if bits == 16 else 1,
        file=_first_page(data, page),
        decoder_bytes=decoder_bytes,
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
    numbers = {tag: _numbers(data, layout, entry) for tag, entry in entries.items()}
    return _Directory(numbers, entries, layout)


def _numbers(data: bytes, layout: str, entry: bytes) -> tuple[int, ...]:
    """Of one entry, which holds them itself or says where they are. There they must all be: Pillow
    gets the file with another header and with more behind its end."""
    tag, kind, count, where = struct.unpack(layout + "HHII", entry)
    if not 0 < count <= (MAX_VALUES if tag in LISTS else 1):
        raise ValueError("no value, or too many")
    size = SIZES[kind] * count
    if size <= 4:
        values = entry[8 : 8 + size]
    elif where >= HEADER_SIZE:
        values = Reader(data, layout, where).take(size)
    else:
        raise ValueError("values in the file's header")
    return struct.unpack(f"{layout}{count}{LAYOUTS[kind]}", values)


def _parts(page: _Directory, width: int, height: int, pixel_bits: int) -> _Parts:
    """How the image is cut, as libtiff has it."""
    across, down = page.number(TILE_WIDTH, 0), page.number(TILE_HEIGHT, 0)
    if not (across and down):
        across, down = max(1, width), max(1, min(height, page.number(ROWS_PER_STRIP, height)))
    columns, rows = -(-width // across), -(-height // down)
    if columns * rows * across * down > 4 * width * height + 2**20:
        raise TooCostly("The tiles of the TIFF image are far larger than what it shows.")
    separate = page.number(PLANAR, 1) == SEPARATE_PLANES
    planes = page.number(SAMPLES, 1) if separate else 1
    row_bytes = -(-across * pixel_bits // planes // 8)
    parts = _Parts(columns, rows, planes, across, down, row_bytes)
    places = (len(page.numbers.get(tag, ())) for tag in (STRIP_OFFSETS, TILE_OFFSETS))
    if max(parts.count, *places) > MAX_STRIPS:
        raise TooCostly(f"The TIFF image has more than {MAX_STRIPS} strips or tiles.")
    return parts


def _check_uncompressed(page: _Directory, parts: _Parts, height: int) -> None:
    """Pillow does not look at how many bytes a part has. Where there are more parts than the image
    needs, it decodes all; where they overlap, it reads up to the next one's begin, over and over.
    Strips win over tiles, unlike in libtiff."""
    tiled = TILE_WIDTH in page.numbers
    if tiled == (STRIP_OFFSETS in page.numbers):
        raise ValueError("strips and tiles at once, or neither")
    offsets = page.numbers[TILE_OFFSETS if tiled else STRIP_OFFSETS]
    places = sorted(zip(offsets, parts.sizes(height), strict=False))
    if len(offsets) > parts.count or any(
        offset + size > following
        for (offset, size), (following, _) in zip(places, places[1:], strict=False)
    ):
        raise TooCostly("The strips or tiles of the TIFF image lie in the same place.")
    check_row(parts.row_bytes)


def _check_compressed(page: _Directory, file_size: int) -> None:
    """libtiff reads as many bytes of a part as the file says. Where it says nothing, a single part
    goes up to the end of the file, and several are refused."""
    for tag in (STRIP_SIZES, TILE_SIZES):
        if sum(page.numbers.get(tag, ())) > file_size:
            raise TooCostly("The strips or tiles of the TIFF image lie in the same place.")


def _first_page(data: bytes, page: _Directory) -> bytes:
    """The file with one page and no tag but those that pixels depend on."""
    entries = [entry for tag, entry in sorted(page.entries.items()) if tag in KEPT]
    start = len(data) + len(data) % 2
    head = data[:4] + struct.pack(page.layout + "I", start)
    count = struct.pack(page.layout + "H", len(entries))
    return b"".join([head, data[HEADER_SIZE:], bytes(len(data) % 2), count, *entries, bytes(4)])
