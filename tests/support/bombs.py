"""Image files of a few bytes that would take much memory or time to decode."""

import struct
import zlib
from collections.abc import Iterable, Mapping

MEGABYTE = 2**20


def lossless_webp(width: int, height: int) -> bytes:
    """Return a one-colour image of at most 34 bytes: no pixel takes a bit."""
    size = (width - 1) | (height - 1) << 14
    codes = 0
    for _ in range(5):  # prefix codes with one symbol each
        codes = codes << 4 | 0b0001
    stream = b"\x2f" + struct.pack("<I", size) + struct.pack("<I", codes << 3)[:4]
    chunk = b"VP8L" + struct.pack("<I", len(stream)) + stream + bytes(len(stream) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def rle_bmp(width: int, height: int) -> bytes:
    """Return one pixel per line; Pillow fills in the others one by one in Python."""
    palette = bytes(4 * 256)
    data = b"\1\1\0\0" * height + b"\0\1"
    start = 14 + 40 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return head + info + palette + data


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(
    width: int, height: int, colour: int = 6, extra: Iterable[bytes] = (), interlace: int = 0
) -> bytes:
    """Return 8-bit pixels of zeros, RGBA by default."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, interlace)
    packer = zlib.compressobj(1)
    rows, size = 0, 1 + channels * width
    packed = []
    while rows < height:
        some = max(1, min(height - rows, 2**22 // size))
        packed.append(packer.compress(bytes(some * size)))
        rows += some
    packed.append(packer.flush())
    chunks = [png_chunk(b"IHDR", header), *extra, png_chunk(b"IDAT", b"".join(packed))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + png_chunk(b"IEND")


def png_with_size(width: int, height: int) -> bytes:
    """Return a PNG whose header promises a size that its pixels do not have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10 * MEGABYTE))
    chunks = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", pixels), png_chunk(b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def exif(tags: int) -> bytes:
    """Return broken tags; Pillow logs a warning for each."""
    entries = b"".join(struct.pack("<HHII", 0x8000 + i, 3, 10**6, 8) for i in range(tags))
    return b"II*\0" + struct.pack("<IH", 8, tags) + entries + bytes(4)


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


HIDDEN_END = jpeg_segment(0xFE, b"\xff\xd9")
"""A comment between two scans that a search for markers takes for the end of the image."""


def progressive_jpeg(width: int, height: int, scans: int, between: bytes = b"") -> bytes:
    """Return a grey image; all scans but the first visit all blocks without a change. `between`
    follows the first scan."""
    blocks = -(-width // 8) * -(-height // 8)
    one_code = bytes([1] + 15 * [0])
    head = [
        jpeg_segment(0xDB, b"\0" + bytes([1] * 64)),
        jpeg_segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"),
        jpeg_segment(0xC4, b"\x00" + one_code + b"\x00"),
        jpeg_segment(0xC4, b"\x10" + one_code + b"\xe0"),  # 2^14 blocks have nothing more
    ]
    first = jpeg_segment(0xDA, b"\1\1\0\0\0\0") + bytes(blocks // 8 + 1)
    other = jpeg_segment(0xDA, b"\1\1\0\1\x3f\0") + bytes((blocks // 2**14 + 1) * 15 // 8 + 1)
    return b"\xff\xd8" + b"".join(head) + first + between + other * (scans - 1) + b"\xff\xd9"


def tiff(
    tags: Mapping[int, tuple[int, int | list[int]]], more_tags: int = 0, data: bytes = bytes(64)
) -> bytes:
    """Return a page of tags, each with a type and one or more numbers; the pixels start at 8."""
    entries = [struct.pack("<HHII", 40_000 + i, 4, 1, 0) for i in range(more_tags)]
    lists = b""
    for tag, (kind, value) in ({279: (4, len(data)), 273: (4, 8)} | dict(tags)).items():
        if isinstance(value, int):
            entries.append(struct.pack("<HHII", tag, kind, 1, value))
            continue
        place = 8 + len(data) + len(lists)
        entries.append(struct.pack("<HHII", tag, kind, len(value), place))
        lists += struct.pack(f"<{len(value)}{' B HI'[kind]}", *value)
    directory = struct.pack("<H", len(entries)) + b"".join(sorted(entries)) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data) + len(lists)) + data + lists + directory


def shared_strips(compression: int, data: bytes, fill_order: int = 1) -> bytes:
    """Return a grey TIFF of 64x65,536 pixels; each row is a strip with the same bytes."""
    rows = 65_536
    tags = {256: (4, 64), 257: (4, rows), 258: (3, 8), 262: (3, 1), 277: (3, 1), 278: (4, 1)}
    places = {259: (3, compression), 266: (3, fill_order), 273: (4, [8] * rows)}
    return tiff(tags | places | {279: (4, [len(data)] * rows)}, data=data)


def empty_deflate_blocks(blocks: int) -> bytes:
    """Return empty blocks before 64 bytes."""
    packed = zlib.compress(bytes(64))
    return packed[:2] + b"\0\0\0\xff\xff" * blocks + packed[2:]


def wide_bmp(width: int) -> bytes:
    """Return one row with 24 bits per pixel."""
    size = 3 * width // 4 * 4 + 4
    info = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, 24, 0, size, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + size, 0, 0, 54) + info + bytes(size)


def gif(blocks: int) -> bytes:
    """Return a comment of many blocks before the only frame."""
    comment = b"!\xfe" + b"\x01x" * blocks + b"\0"
    frame = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
    return b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + comment + frame


def animated_webp(frames: int) -> bytes:
    """Return empty frames."""
    frame = b"ANMF" + struct.pack("<I", 16) + bytes(16)
    chunks = b"VP8X" + struct.pack("<I", 10) + b"\2" + bytes(9)
    chunks += b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame * frames
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def zipped_text() -> bytes:
    """Return a kilobyte that Pillow unpacks to a megabyte of text."""
    return png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(MEGABYTE - 1)))


def box(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def avif(
    kinds: Iterable[bytes],
    places: bytes,
    properties: bytes | None = None,
    more: bytes = b"",
    coded: bytes = b"",
) -> bytes:
    """Return items of those kinds, the first of which is an image of 64x64 pixels. `places` is the
    body of the location table; the coded images come last."""
    names = [
        box(b"infe", struct.pack(">IHH4sx", 2 << 24, number, 0, kind))
        for number, kind in enumerate(kinds, 1)
    ]
    size = box(b"ipco", box(b"ispe", struct.pack(">III", 0, 64, 64)))
    used = box(b"ipma", struct.pack(">IIHBB", 0, 1, 1, 1, 1))
    meta = [
        box(b"pitm", bytes(5) + b"\1"),
        box(b"iinf", struct.pack(">IH", 0, len(names)) + b"".join(names)),
        box(b"iloc", places),
        box(b"iprp", size + used if properties is None else properties),
        more,
    ]
    brands = box(b"ftyp", b"avif\0\0\0\0avifmif1miaf")
    return brands + box(b"meta", bytes(4) + b"".join(meta)) + box(b"mdat", coded)


def empty_extents(items: int, extents: int) -> bytes:
    """Return an AVIF file whose items have many parts; the locations of these take no byte."""
    places = b"".join(struct.pack(">HHH", number, 0, extents) for number in range(1, items + 1))
    return avif(items * [b"Exif"], struct.pack(">IBBH", 0, 0, 0, items) + places)


SEQUENCE_HEADER = "000" + "0" * 4 + f"{25:05b}" + ("0" * 12 + "00000") * 26 + "1" * 8 + "0" * 32
"""In bits: 26 operating points, and the maximum number of bits for a side."""


def av1_units(items: int, units: int, unit: bytes = b"") -> bytes:
    """Return an AVIF file of images with many AV1 units, by default long sequence headers."""
    header = int(SEQUENCE_HEADER.ljust(-(-len(SEQUENCE_HEADER) // 8) * 8, "0"), 2)
    payload = header.to_bytes(-(-len(SEQUENCE_HEADER) // 8), "big")
    data = (unit or bytes([1 << 3 | 2, len(payload)]) + payload) * units

    def file(start: int) -> bytes:
        places = (
            struct.pack(">HHHII", number + 1, 0, 1, start + number * len(data), len(data))
            for number in range(items)
        )
        table = struct.pack(">IBBH", 0, 0x44, 0, items) + b"".join(places)
        return avif(items * [b"av01"], table, coded=items * data)

    return file(len(file(0)) - items * len(data))


def avif_references(references: int) -> bytes:
    """Return references to missing items; libavif searches all items for each and adds it."""
    each = (
        box(b"dimg", struct.pack(">IHI", 1000 + 2 * number, 1, 1001 + 2 * number))
        for number in range(references)
    )
    table = box(b"iref", b"\1\0\0\0" + b"".join(each))
    return avif([b"av01"], struct.pack(">IBBHHHH", 0, 0, 0, 1, 1, 0, 1), more=table)
