"""Image files and pixel arrays to RGB, by Pillow. Runs in the decoder processes only."""

import warnings
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from mlserver_timm.images.sources import FORMATS

PLUGINS = (BmpImagePlugin, GifImagePlugin, WebPImagePlugin)
"""Imported for their effect: Pillow then knows their formats before the first image comes."""

ORIENTATION = 0x0112
"""EXIF tag of the orientation."""

EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that turns an image of this EXIF orientation upright."""

BAND_PIXELS = 2**18
"""Pixels that are turned, converted or resized in one step, 1 MiB of RGB. A large image in one step
would need several copies in memory."""

HEAD_BYTES = 64
"""Bytes of a file by which its kind is recognised."""

HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
BIG_TIFF = (b"II+\0", b"MM\0+")
TIFF = (b"II*\0", b"MM\0*")
TIFF_COMPRESSIONS = {"raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits"}
TIFF_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "I;16", "I;16B"}
PHOTOMETRIC, WHITE_IS_ZERO, YCBCR = 262, 0, 6
"""A tag of TIFF, and two of its values."""

LOSSLESS_FRAMES = {0xFFC3, 0xFFC7, 0xFFCB, 0xFFCF}
"""JPEG's frame markers for lossless compression."""

ACCEPTED = f"send the bytes of a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
UNSUPPORTED_TIFF = (
    "TIFF images of this kind are not supported: use 1 to 16 bits in grey, RGB, a palette or CMYK, "
    "with LZW, deflate, PackBits or no compression, or save the image as PNG."
)


class InvalidImage(Exception):
    """The image cannot be used. The message is one sentence for the client."""


class DamagedImage(InvalidImage):
    """Pillow failed to decode the image. Under a low memory limit, this may be for lack of memory,
    which Pillow reports with any message."""


def configure_pillow() -> None:
    """Set what is global in Pillow: this process has limits of its own and decodes first frames."""
    warnings.simplefilter("ignore")
    Image.preinit()
    Image.MAX_IMAGE_PIXELS = None
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
    # Otherwise Pillow opens JPEG files with an MPF segment as multi-picture files.
    Image.register_open("JPEG", JpegImagePlugin.JpegImageFile, JpegImagePlugin._accept)
    markers: dict[int, Any] = dict(JpegImagePlugin.MARKER)
    for marker, (name, description, handler) in markers.items():
        if handler is JpegImagePlugin.SOF:
            JpegImagePlugin.MARKER[marker] = name, description, _start_of_frame  # type: ignore


def _start_of_frame(image: JpegImagePlugin.JpegImageFile, marker: int) -> None:
    """Read a JPEG's frame header; raise InvalidImage for kinds that no browser shows."""
    if marker in LOSSLESS_FRAMES:
        raise InvalidImage("Lossless JPEG images are not supported: save the image as PNG.")
    try:
        JpegImagePlugin.SOF(image, marker)
    except SyntaxError:
        if image.bits not in (0, 8):
            raise InvalidImage(
                f"JPEG images of {image.bits} bits are not supported: save the image with 8 bits."
            ) from None
        raise


def open_file(file: IO[bytes]) -> Image.Image:
    """Return the image in a file, opened but not decoded.

    Raises InvalidImage if the bytes are no image of `FORMATS` or of a kind that is not supported,
    and DamagedImage if the image cannot be opened.
    """
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if not head:
        raise InvalidImage(f"The image is empty: {ACCEPTED}.")
    _check_signature(head)
    # While it opens files, Pillow then ignores a wrong checksum in a PNG's text. While it decodes,
    # it would fill the missing part of a file with grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        image = Image.open(file, formats=FORMATS)
    except (MemoryError, InvalidImage):
        raise
    except (UnidentifiedImageError, KeyError):
        if head.startswith(TIFF):
            raise InvalidImage(UNSUPPORTED_TIFF) from None
        raise InvalidImage(f"The bytes are not a supported image: {ACCEPTED}.") from None
    except Exception:
        raise DamagedImage(f"The image is damaged: {ACCEPTED}.") from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    if isinstance(image, TiffImagePlugin.TiffImageFile) and (
        image._compression not in TIFF_COMPRESSIONS
        or image.mode not in TIFF_MODES
        or image.tag_v2.get(PHOTOMETRIC) == YCBCR  # which Pillow 12 calls RGB
    ):
        raise InvalidImage(UNSUPPORTED_TIFF)
    return image


def _check_signature(head: bytes) -> None:
    """Raise InvalidImage for kinds of files that are known by their first bytes."""
    if head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS and b"avif" not in head[12:]:
        raise InvalidImage("HEIC images are not supported: convert the image to JPEG or PNG.")
    if head.startswith(BIG_TIFF):
        raise InvalidImage("BigTIFF images are not supported: save the image as TIFF or PNG.")
    is_bmp = head.startswith(b"BM") and head[14:18] != b"\x0c\0\0\0"  # 12: OS/2's short header
    if is_bmp and head[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
        raise InvalidImage(
            "BMP images with run-length encoding are not supported: save the image as PNG."
        )


def webp_size(head: bytes) -> tuple[int, int] | None:
    """Return the width and height in a WebP file's header, or None for other files.

    Pillow allocates memory for the decoded image when it opens the file, so the size must be
    checked first. https://developers.google.com/speed/webp/docs/riff_container
    """
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    sizes = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
    return sizes[0] & 0x3FFF, sizes[1] & 0x3FFF


def coefficients_of(image: Image.Image) -> float:
    """Return how many coefficients a progressive JPEG has for each pixel; 0 for other images."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or "progressive" not in image.info:
        return 0
    samplings = [(across, down) for _, across, down, _ in image.layer]
    unit = max(across for across, _ in samplings) * max(down for _, down in samplings)
    return sum(across * down for across, down in samplings) / max(1, unit)


def load(image: Image.Image, scale: int = 1) -> None:
    """Decode an opened image; a JPEG of `scale` 2, 4 or 8 is decoded that many times smaller.

    Raises DamagedImage.
    """
    try:
        if scale > 1:
            image.draft("RGB", (image.width // scale, image.height // scale))
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        reason = str(error).splitlines()[0].rstrip(".") if isinstance(error, OSError) else ""
        raise DamagedImage(
            f"The {image.format} image is damaged: {reason or 'it cannot be decoded'}."
        ) from None


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, of a decoded image, by the same rule as Pillow's
    `exif_transpose`: from EXIF, and from XMP if EXIF has none."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken EXIF does not make an image invalid
        return 1
    return orientation if orientation in EXIF_TRANSPOSE else 1


class UprightImage:
    """A decoded image as a viewer shows it: upright, in RGB, transparency over white.

    It is turned and converted one part at a time, so that no second copy of it is in memory.
    Colour profiles are ignored, as timm does.
    """

    def __init__(self, image: Image.Image, orientation: int = 1) -> None:
        self._image = image
        self._turn = EXIF_TRANSPOSE.get(orientation)
        self._orientation = orientation
        self.width, self.height = image.size if orientation < 5 else image.size[::-1]
        self.is_plain = orientation == 1 and image.mode == "RGB" and not image.has_transparency_data
        """Whether the image is stored as it is shown."""
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
        self._is_negative = image.mode.startswith("I;16") and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright."""
        return self.width, self.height

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image:
        """Return a part (left, upper, right, lower) of the upright image."""
        if box == (0, 0, *self.size) and self.is_plain:
            return self._image
        part = self._image.crop(self._stored_box(*box))
        if self._is_negative:  # Pillow inverts 8 bits by itself, and 16 bits not
            part = Image.fromarray(65535 - np.asarray(part))
        return to_rgb(part if self._turn is None else part.transpose(self._turn))

    def whole(self) -> Image.Image:
        """Return the whole upright image."""
        if self.is_plain:
            return self._image
        rgb = Image.new("RGB", self.size)
        for box in bands(self.width, 0, self.height):
            rgb.paste(self.crop(box), box)
        return rgb

    def _stored_box(
        self, left: int, upper: int, right: int, lower: int
    ) -> tuple[int, int, int, int]:
        """Return where a part of the upright image lies in the stored one."""
        width, height = self._image.size
        if self._orientation > 4:
            left, upper, right, lower = upper, left, lower, right
        if self._orientation in (2, 3, 7, 8):
            left, right = width - right, width - left
        if self._orientation in (3, 4, 6, 7):
            upper, lower = height - lower, height - upper
        return left, upper, right, lower


def bands(width: int, upper: int, lower: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes of whole rows from `upper` to `lower`, each of at most `BAND_PIXELS` pixels or of
    one row."""
    rows = max(1, BAND_PIXELS // width)
    for top in range(upper, lower, rows):
        yield 0, top, width, min(lower, top + rows)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode in RGB: transparency over white, 16 bits scaled down to 8."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion clips
        return Image.fromarray((np.asarray(image) / 257 + 0.5).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def from_array(array: np.ndarray) -> Image.Image:
    """Return the image in uint8 `[H,W,C]` with C 1 (grey), 3 (RGB) or 4 (RGBA)."""
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
