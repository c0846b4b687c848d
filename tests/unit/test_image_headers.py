"""Headers tell what decoding will cost; files made to cost too much are refused unseen."""

import gc
import io
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlserver_timm.errors import InvalidImage
from mlserver_timm.images.decode import open_image, to_rgb
from mlserver_timm.images.headers import FORMATS, av1, avif, read_header
from mlserver_timm.images.headers.base import Parts, TooCostly
from mlserver_timm.images.headers.exif import orientation
from tests.support import bombs
from tests.support.clients import CAT, assert_sentence, encoded

LIMIT = 64_000_000
PHOTO = Image.open(CAT).convert("RGB")


def turned(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def translucent(mode: str = "RGBA") -> Image.Image:
    picture = PHOTO.convert("RGBA")
    picture.putalpha(PHOTO.convert("L"))
    return picture.convert(mode)


SAVED: list[tuple[str, Image.Image, dict[str, Any]]] = [
    ("JPEG", PHOTO, {}),
    ("JPEG", PHOTO, {"progressive": True, "subsampling": 0}),
    ("JPEG", PHOTO, {"exif": turned(6), "comment": b"x" * 70, "dpi": (72, 72)}),
    ("JPEG", PHOTO.convert("L"), {}),
    ("JPEG", PHOTO.convert("CMYK"), {}),
    ("PNG", PHOTO, {"exif": turned(3)}),
    ("PNG", translucent(), {}),
    ("PNG", translucent("LA"), {}),
    ("PNG", PHOTO.convert("P"), {"transparency": 7}),
    ("PNG", PHOTO.convert("1"), {}),
    ("PNG", PHOTO, {"save_all": True, "append_images": [PHOTO.convert("L").convert("RGB")]}),
    ("WEBP", PHOTO, {"exif": turned(8)}),
    ("WEBP", translucent(), {}),
    ("WEBP", translucent(), {"lossless": True}),
    ("WEBP", PHOTO, {"save_all": True, "append_images": [PHOTO.rotate(180)], "method": 0}),
    ("GIF", PHOTO, {"comment": b"y" * 1000}),
    ("GIF", PHOTO, {"save_all": True, "append_images": [PHOTO.rotate(180)]}),
    ("BMP", PHOTO, {}),
    ("BMP", translucent(), {}),
    ("BMP", PHOTO.convert("L"), {}),
    ("TIFF", PHOTO, {}),
    ("TIFF", PHOTO, {"compression": "tiff_lzw", "exif": turned(5)}),
    ("TIFF", translucent(), {"compression": "tiff_adobe_deflate"}),
    ("TIFF", PHOTO.convert("P"), {}),
    ("TIFF", PHOTO.convert("1"), {}),
    ("TIFF", PHOTO.convert("CMYK"), {"compression": "packbits"}),
    ("TIFF", PHOTO, {"save_all": True, "append_images": [PHOTO.rotate(180)]}),
    ("AVIF", PHOTO, {"exif": turned(6)}),
    ("AVIF", PHOTO, {"subsampling": "4:4:4"}),
    ("AVIF", translucent(), {}),
    ("AVIF", PHOTO, {"save_all": True, "append_images": [PHOTO.rotate(180)]}),
]


@pytest.mark.parametrize(("kind", "picture", "save"), SAVED)
def test_pixels_are_those_of_the_whole_file(
    kind: str, picture: Image.Image, save: dict[str, Any]
) -> None:
    """Nothing that is left out shows; orientation is that of a viewer."""
    from PIL import ImageOps

    data = encoded(picture, kind, **save)
    undecoded = open_image(data, LIMIT)
    whole = Image.open(io.BytesIO(data))
    assert undecoded.header.format == kind == whole.format
    seen = np.asarray(undecoded.decode())
    expected = np.asarray(to_rgb(ImageOps.exif_transpose(whole)))
    if save.get("save_all") and kind == "AVIF":  # the still and the animation are coded apart
        np.testing.assert_allclose(seen.astype(int), expected, atol=40)
    else:
        np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_colour_profiles_are_not_heeded(kind: str) -> None:
    """As timm does, whose reader converts without them."""
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    lossless = {"WEBP": {"lossless": True}}.get(kind, {})
    plain = open_image(encoded(PHOTO, kind, **lossless), LIMIT).decode()
    with_profile = open_image(encoded(PHOTO, kind, icc_profile=profile, **lossless), LIMIT)
    np.testing.assert_array_equal(np.asarray(with_profile.decode()), np.asarray(plain))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_metadata_stays_outside(kind: str) -> None:
    """Pillow would read it, and warn of what is broken, a line each."""
    exif = turned(6)
    exif[0x010E] = "a description"
    data = encoded(PHOTO, kind, exif=exif, icc_profile=b"a profile")
    assert b"a description" in data
    file = read_header(data).file
    inside = Image.open(io.BytesIO(file))
    assert not {"exif", "icc_profile"} & set(inside.info)
    if kind != "TIFF":  # whose tags point into the file, which stays in place
        assert b"a description" not in file


def test_warnings_are_not_made() -> None:
    import warnings

    eight_thousand = bombs.png_chunk(b"eXIf", bombs.exif(8000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_image(bombs.png(4, 4, extra=[eight_thousand]), LIMIT).decode()


@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation(order: str) -> None:
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    tags = [(0x0100, 9), (0x0112, 6), (0x0113, 3)]
    entries = b"".join(struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    exif = mark + struct.pack(order + "IH", 8, len(tags)) + entries
    assert orientation(exif) == orientation(b"Exif\0\0" + exif) == 6
    for cut in range(len(exif) - 14):
        assert orientation(exif[:cut]) == 1


def tiff_tags(width: int, height: int, rows: int) -> dict[int, Any]:
    """Of an uncompressed grey image in strips of so many rows."""
    return {256: (4, width), 257: (4, height), 258: (3, 8), 262: (3, 1), 278: (4, rows)}


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "scans": (lambda: bombs.progressive_jpeg(8000, 8000, 1000), "scans"),
    "scans-of-a-small-one": (lambda: bombs.progressive_jpeg(64, 64, 101), "scans"),
    **{
        f"scans-behind-{name}": (
            lambda between=between: bombs.progressive_jpeg(64, 64, 101, between),
            "scans",
        )
        for name, between in bombs.HIDING.items()
    },
    "run-lengths": (lambda: bombs.rle_bmp(8000, 8000), "run-length"),
    "chunks": (lambda: bombs.png(4, 4, extra=[bombs.png_chunk(b"tEXt")] * 3_000_000), "chunks"),
    "blocks": (lambda: bombs.gif(10_000_000), "blocks"),
    "frames": (lambda: bombs.animated_webp(1_000_000), "chunks"),
    "segments": (lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 10_000_000, "segments"),
    "avif-extents": (lambda: bombs.empty_extents(1000, 1000), "parts"),
    "avif-properties": (lambda: bombs.avif_properties(1000, 5000), "boxes"),
    "avif-associations": (lambda: bombs.avif_associations(5000, 1000), "parts"),
    "avif-references": (lambda: bombs.avif_references(30_000), "tables"),
    "avif-pictures": (lambda: bombs.av1_units(700, 990), "pictures"),
    "avif-sequence-headers": (lambda: bombs.av1_units(1, 500_000), "frames"),
    "avif-units": (lambda: bombs.av1_units(10, 100_000, bytes([2 << 3 | 2, 0])), "parts"),
    "tags": (lambda: bombs.tiff({256: (4, 4), 257: (4, 4)}, more_tags=2000), "tags"),
    "compression": (lambda: bombs.tiff({256: (4, 4), 257: (4, 4), 259: (3, 7)}), "LZW"),
    "strips-of-the-same-bytes-deflate": (
        lambda: bombs.shared_strips(8, bombs.empty_deflate_blocks(200_000)),
        "same place",
    ),
    "strips-of-the-same-bytes-turned": (
        lambda: bombs.shared_strips(8, bytes(1_000_000), fill_order=2),
        "same place",
    ),
    "strips-of-the-same-bytes-lzw": (
        lambda: bombs.shared_strips(5, b"\x80" + bytes(1_000_000)),
        "same place",
    ),
    "strips-of-the-same-bytes-packbits": (
        lambda: bombs.shared_strips(32773, b"\x80" * 1_000_000),
        "same place",
    ),
    "strips-of-the-same-bytes": (lambda: bombs.shared_strips(1, bytes(64)), "same place"),
    "strips-a-byte-apart": (
        lambda: bombs.tiff(
            {**tiff_tags(1000, 1000, 100), 273: (4, list(range(8, 18)))}, data=bytes(1_000_000)
        ),
        "same place",
    ),
    "strips-that-decode-the-image-again": (
        lambda: bombs.tiff(
            {**tiff_tags(1000, 1000, 999), 273: (4, list(range(8, 60_000_000, 1000)))},
            data=bytes(60_000_000),
        ),
        "same place",
    ),
    "tiff-of-a-row": (
        lambda: bombs.tiff(tiff_tags(20_000_000, 1, 1), data=bytes(20_000_000)),
        "row",
    ),
    "bmp-of-a-row": (lambda: bombs.wide_bmp(20_000_000), "row"),
    "tiles": (
        lambda: bombs.tiff({256: (4, 1), 257: (4, 4096), 322: (4, 4096), 323: (4, 4096)}),
        "tiles",
    ),
    "strips": (
        lambda: bombs.tiff({256: (4, 10), 257: (4, 6_000_000), 278: (4, 1)}),
        "strips",
    ),
}


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """Which takes as long as there is much else in this process."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("no_garbage_collection")
def test_refused_in_no_time(name: str) -> None:
    make, word = REFUSED[name]
    data = make()
    started = time.thread_time()
    with pytest.raises(InvalidImage, match=word) as refusal:
        open_image(data, LIMIT)
    assert time.thread_time() - started < 0.2
    assert_sentence(str(refusal.value))


def test_parts_of_an_uncompressed_tiff_may_lie_in_any_order() -> None:
    """Strips, tiles and planes, in whatever order; the lowest may be cut."""
    array = np.asarray(PHOTO)[:50, :96]
    height, width, _ = array.shape
    strips = [array[top : top + 7] for top in range(0, height, 7)]
    planes = [strip[..., plane] for plane in range(3) for strip in strips]
    padded = np.pad(array, ((0, 64 - height), (0, 0), (0, 0)))
    tiles = [
        padded[top : top + 16, left : left + 16]
        for top in range(0, height, 16)
        for left in range(0, width, 16)
    ]
    for parts, offsets, more in (
        (strips, 273, {278: (4, 7)}),
        (planes, 273, {278: (4, 7), 284: (3, 2)}),
        (tiles, 324, {322: (4, 16), 323: (4, 16)}),
    ):
        blocks = [part.tobytes() for part in parts]
        places, data = [8] * len(blocks), b""
        for number in reversed(range(len(blocks))):
            places[number] += len(data)
            data += blocks[number]
        tags = {256: (4, width), 257: (4, height), 258: (3, [8, 8, 8]), 262: (3, 2), 277: (3, 3)}
        sizes = {offsets + (6 if offsets == 273 else 1): (4, [len(block) for block in blocks])}
        file = bombs.tiff(tags | sizes | {offsets: (4, places)} | more, data=data)
        if offsets == 324:
            file = without_tags(file, 273, 279)
        np.testing.assert_array_equal(np.asarray(open_image(file, LIMIT).decode()), array)


def without_tags(tiff: bytes, *tags: int) -> bytes:
    """The file with tags of those numbers made unknown ones."""
    (start,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, start)
    changed = bytearray(tiff)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", tiff, entry)[0] in tags:
            struct.pack_into("<H", changed, entry, 50_000)
    return bytes(changed)


@pytest.mark.parametrize(
    "tags",
    [
        {258: (3, 32)},
        {258: (3, 32), 339: (3, 3)},
        {258: (3, 16), 339: (3, 2)},
        {258: (3, 12)},
        {258: (3, [8, 8, 8]), 262: (3, 6), 277: (3, 3)},
        {258: (3, [8, 8, 8]), 262: (3, 8), 277: (3, 3)},
    ],
)
def test_tiff_of_a_kind_that_is_not_decoded(tags: dict[int, Any]) -> None:
    with pytest.raises(InvalidImage, match="16 bits in grey, RGB, a palette or CMYK") as refusal:
        open_image(bombs.tiff({**tiff_tags(4, 4, 4), **tags}), LIMIT)
    assert_sentence(str(refusal.value))


@pytest.mark.parametrize("head", [b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0"])
def test_big_tiff_is_named(head: bytes) -> None:
    with pytest.raises(InvalidImage, match="BigTIFF") as refusal:
        open_image(head + bytes(100), LIMIT)
    assert_sentence(str(refusal.value))


def test_tiff_with_numbers_where_pillow_gets_others() -> None:
    """In the header, which is written anew, and behind the file's end."""
    tags = {**tiff_tags(4, 4, 4), 262: (3, 2), 277: (3, 3), 258: (3, [8, 8, 8])}
    data = bombs.tiff(tags, data=bytes(2)) + struct.pack("<H", 8)
    assert struct.unpack_from("<I", data, 4) == (16,)  # could be read as bits
    where = data.index(struct.pack("<HHI", 258, 3, 3)) + 8
    for elsewhere in (4, len(data) - 2):
        moved = bytearray(data)
        struct.pack_into("<I", moved, where, elsewhere)
        assert read_header(bytes(moved)) is None


JUNK = {
    "fill-bytes": lambda: b"\xff\xd8" + b"\xff" * 50_000_000,
    "zeros": lambda: b"\xff\xd8\xff\xe0\0\2" + bytes(50_000_000),
    "stuffing": lambda: b"\xff\xd8\xff\xe0\0\2" + b"\xff\0" * 25_000_000,
    "fill-bytes-in-a-scan": lambda: bombs.progressive_jpeg(64, 64, 3, b"\xff" * 50_000_000),
    "fill-bytes-in-the-only-scan": lambda: bombs.progressive_jpeg(64, 64, 1, b"\xff" * 50_000_000),
    "boxes": lambda: b"\0\0\0\x0cftypavif" + b"\0\0\0\x08free" * 5_000_000,
    "riff": lambda: b"RIFF\0\0\0\0WEBP" + bytes(50_000_000),
}


READ: dict[str, Callable[[], bytes]] = {
    "avif-sequence-headers": lambda: bombs.av1_units(100, 4),
    "exif-in-jpeg": lambda: (
        b"\xff\xd8"
        + bombs.jpeg_segment(0xE1, b"Exif\0\0" + bombs.exif(1000)) * 4900
        + encoded(PHOTO, "JPEG")[2:]
    ),
    "exif-in-png": lambda: bombs.png(
        4, 4, extra=[bombs.png_chunk(b"eXIf", bombs.exif(500))] * 9_900
    ),
    "exif-in-webp": lambda: (
        encoded(PHOTO, "WEBP") + bombs.webp((b"EXIF", bombs.exif(500)))[12:] * 9_900
    ),
    "strips": lambda: bombs.tiff(
        {**tiff_tags(64, 65_536, 1), 273: (4, list(range(8, 8 + 64 * 65_536, 64)))},
        data=bytes(64 * 65_536),
    ),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.usefixtures("no_garbage_collection")
def test_headers_are_read_in_no_time(name: str) -> None:
    """The slowest that are accepted, before anything is decoded."""
    data = READ[name]()
    started = time.thread_time()
    assert read_header(data) is not None
    assert time.thread_time() - started < 0.2


@pytest.mark.parametrize("name", JUNK)
@pytest.mark.usefixtures("no_garbage_collection")
def test_junk_is_refused_in_no_time(name: str) -> None:
    data = JUNK[name]()
    started = time.thread_time()
    with pytest.raises(InvalidImage):
        open_image(data, LIMIT)
    assert time.thread_time() - started < 0.2


def test_long_scans_leave_time_for_others() -> None:
    """Looking through 60 MB for scans may take a while, but not in one go."""
    import threading

    data = bombs.progressive_jpeg(800, 800, 2)[:-2] + b"\xff\0" * 30_000_000 + b"\xff\xd9"
    reader = threading.Thread(target=open_image, args=(data, LIMIT))
    reader.start()
    longest, last = 0.0, time.monotonic()
    while reader.is_alive():
        time.sleep(0.005)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert longest < 0.5


def test_usual_scans_are_taken() -> None:
    for size, scans in (((64, 64), 100), ((8000, 8000), 17)):
        data = bombs.progressive_jpeg(*size, scans)
        assert open_image(data, LIMIT).size == size


@pytest.mark.parametrize("name", bombs.HIDING)
def test_what_lies_between_scans_is_no_fault(name: str) -> None:
    """libjpeg reads on behind it, so the pixels are those of all scans."""
    data = encoded(PHOTO, "JPEG", progressive=True)
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    between = bombs.HIDING[name]
    if name == "table":  # of another component's number, so that it changes no pixel
        between = between.replace(b"\1\xff\xd9", b"\3\xff\xd9")
    seen = open_image(data[:second] + between + data[second:], LIMIT).decode()
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(open_image(data, LIMIT).decode()))


@pytest.mark.parametrize("progressive", [False, True])
def test_only_what_was_counted_of_a_jpeg_is_decoded(progressive: bool) -> None:
    """Nothing behind the image's end, nor behind a marker at which libjpeg stops."""
    data = encoded(PHOTO, "JPEG", progressive=progressive)
    scans = bombs.progressive_jpeg(64, 64, 1000)
    whole = open_image(data, LIMIT)
    assert read_header(data + scans).file == whole.header.file
    np.testing.assert_array_equal(
        np.asarray(open_image(data + scans, LIMIT).decode()), np.asarray(whole.decode())
    )
    for stop in (b"\xff\xd8", b"\xff\xc0", b"\xff\xc2", b"\xff\xf0"):
        stopped = open_image(data[:-2] + stop + scans, LIMIT)
        assert stopped.header.file.endswith(data[-9:-2] + stop)
        with pytest.raises(InvalidImage, match="damaged"):
            stopped.decode()


def test_a_jpeg_may_be_followed_by_fill_bytes() -> None:
    """As cameras' cards leave them."""
    open_image(encoded(PHOTO, "JPEG") + b"\xff" * 10_000_000, LIMIT).decode()


def av1_item(data: bytes) -> bytes:
    """The coded picture in an AVIF file."""
    parts = Parts("boxes")
    boxes = list(avif._boxes(data, 0, len(data), parts))
    meta = avif._meta(data, boxes, parts)
    (item,) = avif._coded_items(data, meta)
    return item


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("size", [(1, 1), (64, 48), (301, 217)])
def test_av1_size(size: tuple[int, int], subsampling: str) -> None:
    picture = PHOTO.resize(size)
    stream = av1.read(av1_item(encoded(picture, "AVIF", subsampling=subsampling)), Parts("units"))
    assert (stream.width, stream.height) == size
    assert stream.planes_bytes >= size[0] * size[1] * 3


def test_av1_frames() -> None:
    """Frames that are not shown have to be decoded all the same."""
    item = av1_item(encoded(PHOTO, "AVIF"))
    av1.read(item * 4, Parts("units"))
    with pytest.raises(TooCostly, match="frames"):
        av1.read(item * 5, Parts("units"))


def test_avif_that_is_larger_than_it_says() -> None:
    data = encoded(PHOTO, "AVIF")
    told = struct.pack(">II", *PHOTO.size)
    assert data.count(told) == 1
    with pytest.raises(InvalidImage, match="larger"):
        open_image(data.replace(told, struct.pack(">II", 16, 16)), LIMIT)


@pytest.mark.parametrize("table", [b"iloc", b"iinf", b"iprp", b"idat"])
def test_avif_with_a_table_twice(table: bytes) -> None:
    """libavif reads the first before it refuses the second; one alone would be bounded here."""
    data = encoded(PHOTO, "AVIF")
    start = data.index(b"meta")
    (size,) = struct.unpack_from(">I", data, start - 4)
    tables = data[start + 4 : start - 4 + size] + bombs.box(b"idat")
    place = tables.index(table)
    (size,) = struct.unpack_from(">I", tables, place - 4)
    moved = data.replace(b"meta", b"free")  # to the end, where it may grow
    assert read_header(moved + bombs.box(b"meta", tables)) is not None
    twice = tables + tables[place - 4 : place - 4 + size]
    assert read_header(moved + bombs.box(b"meta", twice)) is None


def test_only_pictures_of_an_avif_are_handed_on() -> None:
    """Neither EXIF nor XMP data; nothing changes its place."""
    exif = turned(6)
    exif[0x010E] = "a description"
    data = encoded(PHOTO, "AVIF", exif=exif, xmp=b"<x></x>")
    file = read_header(data).file
    assert len(file) == len(data)
    assert sorted(avif_kinds(data)) == [b"Exif", b"av01", b"mime"]
    assert sorted(avif_kinds(file)) == [b"av01", b"free", b"free"]


def avif_kinds(data: bytes) -> list[bytes]:
    """Of all its items."""
    parts = Parts("boxes")
    return list(
        avif._meta(data, list(avif._boxes(data, 0, len(data), parts)), parts).kinds.values()
    )


@pytest.mark.parametrize("behind", [b"IHDR", b"IDAT"])
def test_png_with_two_headers(behind: bytes) -> None:
    """Of which Pillow would decode the last, and the first be taken for what it costs."""
    data = bombs.png(4, 4, 6)
    kind = data.index(behind)
    end = kind + 4 + struct.unpack_from(">I", data, kind - 4)[0] + 4
    second = bombs.png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    assert read_header(data) is not None
    assert read_header(data[:end] + second + data[end:]) is None


def test_gif_of_which_nothing_is_kept_for_a_next_frame() -> None:
    """What to do before it would take an image more. Transparency stays."""
    picture = PHOTO.convert("RGBA")
    picture.putalpha(PHOTO.convert("L").point([0] * 99 + [255] * 157))
    data = encoded(picture, "GIF", disposal=2)
    whole = Image.open(io.BytesIO(data))
    assert whole.dispose is not None and "transparency" in whole.info
    undecoded = open_image(data, LIMIT)
    assert Image.open(io.BytesIO(undecoded.header.file)).dispose is None
    np.testing.assert_array_equal(np.asarray(undecoded.decode()), np.asarray(to_rgb(whole)))


@pytest.mark.parametrize(("left", "top"), [(0, 0), (5, 6), (60_000, 900)])
def test_gif_whose_frame_lies_outside_of_its_screen(left: int, top: int) -> None:
    frame = b",\0\0\0\0\1\0\1\0"
    data = bombs.gif(1).replace(frame, struct.pack("<cHHHH", b",", left, top, 1, 1))
    undecoded = open_image(data, LIMIT)
    assert undecoded.size == undecoded.decode().size == (left + 1, top + 1)


def canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    sides = ((side - 1).to_bytes(3, "little") for side in (width, height))
    return b"VP8X", struct.pack("<I", flags) + b"".join(sides)


def webp_frame(width: int, height: int, image: bytes) -> tuple[bytes, bytes]:
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    return b"ANMF", bytes(6) + sides + bytes(4) + image


SMALL, BIG = bombs.lossless_webp(16, 16)[12:], bombs.lossless_webp(4000, 4000)[12:]
SMALL_IMAGE, BIG_IMAGE = ((b"VP8L", image[8:]) for image in (SMALL, BIG))
ANIMATION = (canvas(16, 16, 2), (b"ANIM", bytes(6)))


@pytest.mark.parametrize(
    "chunks",
    [
        (canvas(16, 16), BIG_IMAGE),
        (canvas(16, 16), canvas(4000, 4000), BIG_IMAGE),
        (*ANIMATION, webp_frame(4000, 4000, BIG)),
        (*ANIMATION, webp_frame(16, 16, BIG)),
        ((b"ICCP", b""), SMALL_IMAGE, BIG_IMAGE),
    ],
)
def test_webp_that_is_larger_than_it_says(chunks: list[tuple[bytes, bytes]]) -> None:
    """libwebp refuses it, before it takes memory."""
    undecoded = open_image(bombs.webp(*chunks), LIMIT)
    assert undecoded.size == (16, 16)
    with pytest.raises(InvalidImage, match="damaged"):
        undecoded.decode()


def test_webp_with_an_image_behind_the_first() -> None:
    undecoded = open_image(bombs.webp(SMALL_IMAGE, BIG_IMAGE), LIMIT)
    assert undecoded.size == undecoded.decode().size == (16, 16)


@pytest.mark.parametrize("height", [4, -4, 2**30, -(2**30), -(2**31)])
@pytest.mark.parametrize("width", [4, -4, 2**30, -(2**31)])
def test_bmp_of_odd_sides(width: int, height: int) -> None:
    """Pillow takes some numbers for others, with and without a sign."""
    data = bytearray(encoded(PHOTO.resize((4, 4)), "BMP"))
    struct.pack_into("<ii", data, 18, width, height)
    if (width, abs(height)) == (4, 4):
        assert open_image(bytes(data), LIMIT).decode().size == (4, 4)
    else:
        with pytest.raises(InvalidImage):
            open_image(bytes(data), LIMIT)


def test_heic_is_named() -> None:
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    with pytest.raises(InvalidImage, match="HEIC") as refusal:
        open_image(data, LIMIT)
    assert_sentence(str(refusal.value))


@pytest.mark.parametrize("kind", FORMATS)
def test_cut_files_are_refused_or_decoded(kind: str) -> None:
    """At every length, by one of our own errors."""
    data = encoded(PHOTO.resize((40, 30)), kind)
    for length in range(0, len(data), max(1, len(data) // 400)):
        try:
            open_image(data[:length], LIMIT).decode()
        except InvalidImage as error:
            assert_sentence(str(error))
