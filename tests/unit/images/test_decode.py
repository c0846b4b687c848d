"""Each kind of image is decoded as a viewer shows it, or refused with a sentence that names it."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from mlserver_timm.images.decode import DamagedImage, InvalidImage, from_array, open_file, to_rgb
from tests.support import bombs
from tests.support.clients import CAT, assert_sentence, encoded, image_file
from tests.support.images import decoded, decoded_by_pillow

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 7, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (9, 7, 1), np.uint8)
PHOTO = Image.open(CAT).convert("RGB")


def pixels_of(data: bytes) -> np.ndarray:
    image = decoded(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(float)


def with_orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def translucent(mode: str = "RGBA") -> Image.Image:
    image = PHOTO.convert("RGBA")
    image.putalpha(PHOTO.convert("L"))
    return image.convert(mode)


SAVED: list[tuple[str, Image.Image, dict[str, Any]]] = [
    ("JPEG", PHOTO, {}),
    ("JPEG", PHOTO, {"progressive": True, "subsampling": 0}),
    ("JPEG", PHOTO, {"comment": b"x" * 70, "dpi": (72, 72)}),
    ("JPEG", PHOTO.convert("L"), {}),
    ("JPEG", PHOTO.convert("CMYK"), {}),
    ("PNG", PHOTO.convert("1"), {}),
    ("PNG", PHOTO, {"save_all": True, "append_images": [PHOTO.convert("L").convert("RGB")]}),
    ("WEBP", PHOTO, {"lossless": True}),
    ("WEBP", PHOTO, {"save_all": True, "append_images": [PHOTO.rotate(180)], "method": 0}),
    ("GIF", PHOTO, {"comment": b"y" * 1000}),
    ("GIF", PHOTO, {"save_all": True, "append_images": [PHOTO.rotate(180)]}),
    ("BMP", PHOTO, {}),
    ("BMP", PHOTO.convert("L"), {}),
    ("TIFF", PHOTO, {}),
    ("TIFF", PHOTO, {"compression": "tiff_lzw"}),
    ("TIFF", PHOTO.convert("P"), {}),
    ("TIFF", PHOTO.convert("1"), {}),
    ("TIFF", PHOTO.convert("CMYK"), {"compression": "packbits"}),
    ("TIFF", PHOTO, {"save_all": True, "append_images": [PHOTO.rotate(180)]}),
    ("AVIF", PHOTO, {"subsampling": "4:4:4"}),
    ("AVIF", PHOTO, {"save_all": True, "append_images": [PHOTO.rotate(180)]}),
    *[
        (kind, PHOTO, {"exif": with_orientation(orientation)})
        for kind in ("PNG", "WEBP", "JPEG", "TIFF", "AVIF")
        for orientation in range(10)  # 0 and 9 have no meaning
    ],
]


@pytest.mark.parametrize(("kind", "image", "save"), SAVED)
def test_pixels_are_those_that_pillow_shows(
    kind: str, image: Image.Image, save: dict[str, Any]
) -> None:
    data = encoded(image, kind, **save)
    np.testing.assert_array_equal(np.asarray(decoded(data)), np.asarray(decoded_by_pillow(data)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_colour_profiles_are_ignored(kind: str) -> None:
    """timm's reader ignores them, too."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    lossless = {"lossless": True} if kind == "WEBP" else {}
    plain = decoded(encoded(PHOTO, kind, **lossless))
    with_profile = decoded(encoded(PHOTO, kind, icc_profile=profile, **lossless))
    np.testing.assert_array_equal(np.asarray(with_profile), np.asarray(plain))


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize(("kind", "save"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_alpha_over_white(kind: str, save: dict[str, Any]) -> None:
    pixels = np.concatenate([COLOUR, ALPHA], axis=2)
    data = encoded(Image.fromarray(pixels), kind, **save, **({"exact": True} if save else {}))
    np.testing.assert_allclose(pixels_of(data), over_white(COLOUR, ALPHA), rtol=0, atol=1)
    array = np.asarray(to_rgb(from_array(pixels))).astype(float)
    np.testing.assert_allclose(array, over_white(COLOUR, ALPHA), rtol=0, atol=1)


def test_grey_with_alpha() -> None:
    grey = COLOUR[:, :, :1]
    data = encoded(Image.fromarray(np.concatenate([grey, ALPHA], axis=2), "LA"))
    expected = over_white(grey, ALPHA).repeat(3, axis=2)
    np.testing.assert_allclose(pixels_of(data), expected, rtol=0, atol=1)


def sixteen_bits() -> np.ndarray:
    values = RNG.integers(0, 65536, (9, 7)).astype(np.uint16)
    values[0, :3] = 0, 256, 65535
    return values


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind: str) -> None:
    """A plain conversion in Pillow would clip nearly all to white."""
    values = sixteen_bits()
    pixels = pixels_of(encoded(Image.fromarray(values), kind))
    assert (pixels == pixels[:, :, :1]).all()
    np.testing.assert_allclose(pixels[:, :, 0], values / 257, rtol=0, atol=0.51)


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_whose_zero_is_white(bits: int) -> None:
    values = sixteen_bits() if bits == 16 else COLOUR[:, :, 0]
    tags = {256: (4, 7), 257: (4, 9), 258: (3, bits), 262: (3, 0), 278: (4, 9)}
    pixels = pixels_of(bombs.tiff(tags, data=values.astype(f"<u{bits // 8}").tobytes()))
    inverted = (2**bits - 1 - values.astype(float)) / (2 ** (bits - 8) + (bits == 16))
    np.testing.assert_allclose(pixels[:, :, 0], inverted, rtol=0, atol=0.51)


def paletted() -> Image.Image:
    """Red, green and blue by index."""
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    return image


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_palette(kind: str) -> None:
    expected = [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    assert pixels_of(encoded(paletted(), kind)).tolist() == expected


@pytest.mark.parametrize(
    ("kind", "transparency", "expected"),
    [
        ("PNG", 1, [[255, 0, 0], [255, 255, 255], [0, 0, 255]]),
        ("GIF", 1, [[255, 0, 0], [255, 255, 255], [0, 0, 255]]),
        ("PNG", bytes([255, 0, 51]), [[255, 0, 0], [255, 255, 255], [204, 204, 255]]),
    ],
)
def test_palette_with_transparency(kind: str, transparency: Any, expected: Any) -> None:
    assert pixels_of(encoded(paletted(), kind, transparency=transparency)).tolist() == [expected]


def test_transparent_colour() -> None:
    """tRNS names one colour of an RGB or grey PNG that is transparent."""
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert pixels_of(encoded(image, transparency=(1, 2, 3))).tolist() == [[[255] * 3, [4, 5, 6]]]
    grey = Image.fromarray(np.array([[1, 4]], np.uint8))
    assert pixels_of(encoded(grey, transparency=1)).tolist() == [[[255] * 3, [4] * 3]]


def test_first_image_of_a_multi_picture_jpeg() -> None:
    """Phones append a depth map to the photograph."""
    first, second = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    np.testing.assert_allclose(pixels_of(data)[8, 8], (255, 0, 0), atol=3)


TURNED = pixels_of(encoded(PHOTO, "JPEG", exif=with_orientation(6)))


def test_exif_orientation_as_a_long() -> None:
    """Some cameras write it as a LONG in place of a SHORT."""
    entry = struct.pack("<H", 1) + struct.pack("<HHII", 0x0112, 4, 1, 6) + bytes(4)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + entry
    np.testing.assert_array_equal(pixels_of(encoded(PHOTO, "JPEG", exif=exif)), TURNED)


def test_xmp_orientation() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    np.testing.assert_array_equal(pixels_of(encoded(PHOTO, "JPEG", xmp=xmp)), TURNED)


@pytest.mark.parametrize("cut", [4, 20, 60])
def test_broken_exif_is_ignored(cut: int) -> None:
    data = encoded(PHOTO, "JPEG", exif=(b"Exif\0\0" + bombs.exif(8))[:cut])
    np.testing.assert_array_equal(pixels_of(data), pixels_of(encoded(PHOTO, "JPEG")))


def png_with(*chunks: bytes, behind: bytes = b"") -> bytes:
    """Return a PNG with chunks before its pixels, and others after them."""
    plain = encoded(Image.fromarray(COLOUR))
    start, end = plain.index(b"IDAT") - 4, plain.index(b"IEND") - 4
    return plain[:start] + b"".join(chunks) + plain[start:end] + behind + plain[end:]


WRONG_CHECKSUM = bombs.png_chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\0"


@pytest.mark.parametrize(
    "data",
    [
        png_with(WRONG_CHECKSUM),
        png_with(behind=WRONG_CHECKSUM),
        png_with(bombs.png_chunk(b"tEXt", b"a\0" + b"b" * 9_000_000)),
        png_with(bombs.png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(5_000_000)))),
        png_with(behind=bombs.png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(5_000_000)))),
        png_with(bombs.png_chunk(b"tEXt", b"a\0b") * 500),
    ],
    ids=["checksum", "checksum-behind", "long", "packed", "packed-behind", "many"],
)
def test_text_in_a_png_does_not_matter(data: bytes) -> None:
    np.testing.assert_array_equal(pixels_of(data), COLOUR)


def test_mjpeg_frame_without_huffman_tables() -> None:
    """Webcams leave out the tables of the JPEG standard."""
    plain = encoded(PHOTO, "JPEG", optimize=False)
    data, at = bytearray(plain[:2]), 2
    while plain[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(plain[at + 2 : at + 4], "big")
        if plain[at + 1] != 0xC4:
            data += plain[at:end]
        at = end
    data += plain[at:]
    assert len(data) < len(plain)
    np.testing.assert_array_equal(pixels_of(bytes(data)), pixels_of(plain))


def jpeg_frame(marker: int, bits: int) -> bytes:
    frame = bombs.jpeg_segment(marker, struct.pack(">BHHB", bits, 8, 8, 1) + b"\1\x11\0")
    return b"\xff\xd8" + frame + bombs.jpeg_segment(0xDA, b"\1\1\0\0\x3f\0") + b"\xff\xd9"


def tiff_of(tags: dict[int, Any]) -> bytes:
    grey = {256: (4, 4), 257: (4, 4), 258: (3, 8), 262: (3, 1), 278: (4, 4)}
    return bombs.tiff({**grey, **tags})


UNSUPPORTED = {
    "empty": (b"", "empty"),
    "words": (b"hello", "not a supported image"),
    "ppm": (b"P6 1 1 255 abc", "not a supported image"),
    "heic": (bombs.box(b"ftyp", b"heic\0\0\0\0mif1heic") + bytes(100), "HEIC"),
    "big-tiff": (b"II+\0\x08\0\0\0" + bytes(100), "BigTIFF"),
    "big-tiff-of-the-other-order": (b"MM\0+\0\x08\0\0" + bytes(100), "BigTIFF"),
    "lossless-jpeg": (jpeg_frame(0xC3, 8), "Lossless JPEG"),
    "12-bit-jpeg": (jpeg_frame(0xC1, 12), "12 bits"),
    "rle-bmp": (bombs.rle_bmp(8, 8), "run-length"),
    "jpeg-in-tiff": (tiff_of({259: (3, 7)}), "TIFF images of this kind"),
    "fax-in-tiff": (tiff_of({258: (3, 1), 259: (3, 4)}), "TIFF images of this kind"),
    "unknown-compression-in-tiff": (tiff_of({259: (3, 9999)}), "TIFF images of this kind"),
    "float-tiff": (tiff_of({258: (3, 32), 339: (3, 3)}), "TIFF images of this kind"),
    "32-bit-tiff": (tiff_of({258: (3, 32)}), "TIFF images of this kind"),
    "ycbcr-tiff": (
        tiff_of({258: (3, [8, 8, 8]), 262: (3, 6), 277: (3, 3)}),
        "TIFF images of this kind",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported(name: str) -> None:
    data, words = UNSUPPORTED[name]
    with pytest.raises(InvalidImage, match=words) as refusal:
        decoded(data)
    assert_sentence(str(refusal.value))
    assert not isinstance(refusal.value, DamagedImage)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_files_that_are_cut_off(kind: str, part: float) -> None:
    data = image_file(kind)
    with pytest.raises(InvalidImage) as refusal:
        decoded(data[: int(len(data) * part)])
    assert_sentence(str(refusal.value))


def test_header_is_read_without_decoding() -> None:
    image = open_file(io.BytesIO(bombs.png(8000, 8000)))
    assert image.size == (8000, 8000)
