"""AVIF: the primary picture, coded in one piece."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from mlserver_timm.errors import InvalidImage
from mlserver_timm.images.headers import av1
from mlserver_timm.images.headers.base import ImageHeader, Parts, Reader, TooCostly

AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}

CODED = b"av01"
MAX_PICTURES = 100
"""The one that is shown, its alpha plane, thumbnails, and those of a collection."""
MAX_TABLE = 2**16
"""Bytes of a table that is not read here. libavif looks for each item that one names among all."""
WALKED = {b"iinf", b"iloc", b"iprp", b"idat"}
PER_PIXEL = 6
"""Bytes a pixel of the copy for Python, and of what the decoder keeps beside its planes."""


@dataclass
class _Meta:
    """What the `meta` box tells; places are offsets in the file."""

    primary: int = 0
    kinds: dict[int, bytes] = field(default_factory=dict)
    """Of items."""
    kind_places: dict[int, int] = field(default_factory=dict)
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Start and end of each part of an item."""
    sizes: list[tuple[int, int] | None] = field(default_factory=list)
    """Of each property; None for those that are no size."""
    properties: dict[int, list[int]] = field(default_factory=dict)
    """Of each item, counted from 1."""


@dataclass(frozen=True)
class _Box:
    kind: bytes
    place: int
    """Where its kind stands in the file."""
    start: int
    end: int


def accepts(data: bytes) -> bool:
    """Whether it begins as an AVIF or HEIC file."""
    return data[4:8] == b"ftyp"


def read(data: bytes) -> ImageHeader:
    """The header of an AVIF file; raises InvalidImage for HEIC.

    The size is said twice: by the container, and by the AV1 stream within, which is what is decoded
    and must not be larger.
    """
    parts = Parts("boxes, items or parts of them")
    boxes = list(_boxes(data, 0, len(data), parts))
    _check_brand(data, boxes[0])
    meta = _meta(data, boxes, parts)
    width, height = _size(meta)
    streams = [av1.read(item, parts) for item in _coded_items(data, meta)]
    if any(stream.width > width or stream.height > height for stream in streams):
        raise TooCostly("The AVIF image holds larger pictures than it says.")
    return ImageHeader(
        format="AVIF",
        width=width,
        height=height,
        pixel_bytes=4,
        file=_still(data, boxes, meta),
        decoder_bytes=PER_PIXEL * width * height + sum(stream.planes_bytes for stream in streams),
        is_rgb=False,
    )


def _coded_items(data: bytes, meta: _Meta) -> Iterator[bytes]:
    """Pictures, alpha planes and thumbnails."""
    items = [meta.extents[item] for item, kind in meta.kinds.items() if kind == CODED]
    if len(items) > MAX_PICTURES:
        raise TooCostly(f"The AVIF file holds more than {MAX_PICTURES} pictures.")
    if sum(end - start for places in items for start, end in places) > len(data):
        raise TooCostly("The AVIF image's items lie in the same place.")
    for places in items:
        yield b"".join(data[start:end] for start, end in places)


def _check_brand(data: bytes, box: _Box) -> None:
    end = min(box.end, box.start + 400)
    brands = {data[box.start : box.start + 4]}
    brands |= {data[place : place + 4] for place in range(box.start + 8, end, 4)}
    if brands & AVIF_BRANDS:
        return
    if brands & HEIC_BRANDS:
        raise InvalidImage("HEIC images are not decoded here; send JPEG, PNG, WebP or AVIF.")
    raise ValueError("neither AVIF nor HEIC")


def _boxes(data: bytes, start: int, end: int, parts: Parts) -> Iterator[_Box]:
    while start + 8 <= end:
        parts.add()
        size, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1:
            size, body = Reader(data, ">", body).number("Q"), body + 8
        stop = start + size if size else end
        if not body <= stop <= end:
            raise ValueError("a box ends outside of the one around it")
        yield _Box(kind, start + 4, body, stop)
        start = stop


def _meta(data: bytes, boxes: list[_Box], parts: Parts) -> _Meta:
    (outer,) = (box for box in boxes if box.kind == b"meta")
    tables = list(_boxes(data, outer.start + 4, outer.end, parts))
    if any(box.end - box.start > MAX_TABLE for box in tables if box.kind not in WALKED):
        raise TooCostly("The AVIF image has tables that are larger than any picture needs.")
    inner = {box.kind: box for box in tables}
    if sum(box.kind in WALKED for box in tables) > len(WALKED & inner.keys()):
        raise ValueError("a table twice")
    meta = _Meta()
    primary = Reader(data, ">", inner[b"pitm"].start)
    meta.primary = primary.number("H") if primary.number("B3x") == 0 else primary.number("I")
    _read_items(data, inner[b"iinf"], meta, parts)
    idat = inner.get(b"idat")
    _read_places(data, inner[b"iloc"], meta, idat.start if idat else len(data), parts)
    _read_properties(data, inner[b"iprp"], meta, parts)
    return meta


def _read_items(data: bytes, box: _Box, meta: _Meta, parts: Parts) -> None:
    short = data[box.start] == 0
    for entry in _boxes(data, box.start + (6 if short else 8), box.end, parts):
        reader = Reader(data, ">", entry.start)
        version = reader.number("B3x")
        if entry.kind != b"infe" or version < 2:
            continue
        item = reader.number("H" if version == 2 else "I")
        reader.skip(2)
        meta.kind_places[item] = reader.position
        meta.kinds[item] = reader.take(4)


def _read_places(data: bytes, box: _Box, meta: _Meta, idat: int, parts: Parts) -> None:
    reader = Reader(data, ">", box.start)
    version, lengths, more_lengths = reader.numbers("B3xBB")
    layouts = {0: "0s", 4: "I", 8: "Q"}
    offset, length = layouts[lengths >> 4], layouts[lengths & 15]
    base, index = layouts[more_lengths >> 4], layouts[more_lengths & 15 if version else 0]
    for _ in range(reader.number("H" if version < 2 else "I")):
        item = reader.number("H" if version < 2 else "I")
        method = reader.number("H") & 15 if version else 0
        reader.skip(2)
        origin = (reader.number(base) or 0) + (idat if method == 1 else 0)
        count = reader.number("H")
        parts.add(1 + count)
        if method > 1:
            raise ValueError("a part of an item that is in another item")
        places = []
        for _ in range(count):
            reader.number(index)
            start, size = origin + (reader.number(offset) or 0), reader.number(length)
            places.append((start, start + size if size else len(data)))
        meta.extents[item] = places


def _read_properties(data: bytes, box: _Box, meta: _Meta, parts: Parts) -> None:
    for inner in _boxes(data, box.start, box.end, parts):
        if inner.kind == b"ipco":
            meta.sizes += [
                Reader(data, ">", one.start).numbers("4xII") if one.kind == b"ispe" else None
                for one in _boxes(data, inner.start, inner.end, parts)
            ]
        elif inner.kind == b"ipma":
            _read_associations(Reader(data, ">", inner.start), meta, parts)


def _read_associations(reader: Reader, meta: _Meta, parts: Parts) -> None:
    version, flags = reader.numbers("B2xB")
    for _ in range(reader.number("I")):
        item, count = reader.numbers("HB" if version < 1 else "IB")
        parts.add(1 + count)
        wide = flags & 1
        places = reader.numbers(f"{count}{'H' if wide else 'B'}")
        meta.properties[item] = [place & (0x7FFF if wide else 0x7F) for place in places]


def _size(meta: _Meta) -> tuple[int, int]:
    """The primary picture's; grids and what is derived otherwise are refused."""
    if meta.kinds[meta.primary] != CODED:
        raise InvalidImage("AVIF images made of several tiles are not decoded here; send JPEG.")
    places = meta.properties[meta.primary]
    return [size for place in places if place and (size := meta.sizes[place - 1])][0]


def _still(data: bytes, boxes: list[_Box], meta: _Meta) -> bytes:
    """The file without its animation and without items that are no picture, which Pillow would read
    too: boxes and items are renamed, which leaves everything in its place."""
    brands = data[boxes[0].start : boxes[0].end].replace(b"avis", b"avif")
    renamed = {box.place for box in boxes if box.kind == b"moov"}
    renamed |= {meta.kind_places[item] for item, kind in meta.kinds.items() if kind != CODED}
    whole, position = memoryview(data), boxes[0].end
    pieces: list[bytes | memoryview] = [whole[: boxes[0].start], brands]
    for place in sorted(renamed):
        pieces += [whole[position:place], b"free"]
        position = place + 4
    return b"".join([*pieces, whole[position:]])
