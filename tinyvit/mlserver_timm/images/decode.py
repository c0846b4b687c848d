"""From encoded images and pixel arrays to RGB."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mlserver_timm.errors import InvalidImage, InvalidRequest
from mlserver_timm.images import sources
from mlserver_timm.images.headers import FORMATS, read_header
from mlserver_timm.images.headers.base import ImageHeader
from mlserver_timm.images.headers.exif import orientation

PILLOW: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "AVIF": AvifImageFile,
}
"""Its class for each format: Image.open has a limit on pixels and a list of formats that are one
for the whole process."""

EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of such an EXIF orientation upright."""

BAND = 2**18
"""Pixels of an image that are copied at once, a megabyte: laid over white in one piece it would be
there five times."""


class Undecoded(Protocol):
    """An image whose size is known and whose pixels are not yet decoded."""

    @property
    def header(self) -> ImageHeader:
        """Its size and what decoding takes."""
        ...

    def decode(self, scale: int = 1) -> Image.Image:
        """Upright and in RGB, as a viewer shows it; raises InvalidImage.

        A JPEG of `scale` 2, 4 or 8 is decoded that much smaller.
        """
        ...


class ImageSource(Protocol):
    """One image of a request. It is cheap to make; what may be slow or fail is left to `open`."""

    def open(self) -> Undecoded:
        """Reads the header; raises InvalidImage or InvalidRequest."""
        ...


@dataclass(frozen=True)
class EncodedImage:
    """An image file."""

    data: bytes
    max_pixels: int

    def open(self) -> "UndecodedFile":
        """Reads the file's header."""
        return open_image(self.data, self.max_pixels)


def openable(image: "ImageSource | sources.ImageSource", max_pixels: int) -> ImageSource:
    """The image as the decoding threads take it."""
    if isinstance(image, sources.EncodedImage):
        return EncodedImage(image.data, max_pixels)
    if isinstance(image, sources.PixelArray):
        return PixelImage(image.array.ravel(), 0, *image.array.shape)
    return image


@dataclass(frozen=True)
class PixelImage:
    """Part of a flat list of pixel values 0 to 255, or of a flat uint8 array: rows of pixels of
    `channels` values each."""

    values: Sequence[Any] | np.ndarray
    offset: int
    height: int
    width: int
    channels: int

    def open(self) -> "UndecodedArray":
        """Gets the values together."""
        size = self.height * self.width * self.channels
        whole = self.offset == 0 and len(self.values) == size
        values = self.values if whole else self.values[self.offset : self.offset + size]
        return UndecodedArray(_uint8(values).reshape(self.height, self.width, self.channels))


@dataclass(frozen=True)
class UndecodedFile:
    """A file of one of `FORMATS`."""

    header: ImageHeader

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as stored."""
        return self.header.width, self.header.height

    def decode(self, scale: int = 1) -> Image.Image:
        """As `Undecoded` has it."""
        try:
            return self._decode(scale)
        except Exception as error:  # decoders raise nearly anything on hostile bytes
            reason = _reason(error)  # the error itself holds frames, and they the pixels so far
        raise InvalidImage(f"The {self.header.format} image is damaged: {reason}.")

    def _decode(self, scale: int) -> Image.Image:
        image = PILLOW[self.header.format](io.BytesIO(self.header.file))
        if image.size != self.size:
            raise OSError("it has another size than its header says")
        if scale > 1:
            image.draft("RGB", (image.width // scale, image.height // scale))
        image.load()
        turn = self.header.orientation
        if self.header.format == "AVIF":  # has its own way to say so, which Pillow puts into EXIF
            turn = orientation(image.info.get("exif", b""))
        return _to_rgb_and_close(_upright_and_close(image, turn))


@dataclass(frozen=True)
class UndecodedArray:
    """Pixels: uint8 `[H,W,C]` with C 1 (grey), 3 (RGB) or 4 (RGBA)."""

    array: np.ndarray

    @property
    def header(self) -> ImageHeader:
        """What it would be as a file."""
        height, width, channels = self.array.shape
        return ImageHeader(
            format="array",
            width=width,
            height=height,
            pixel_bytes=1 if channels == 1 else 4,
            file=b"",
            decoder_bytes=self.array.size,
            is_rgb=channels == 3,
        )

    def decode(self, scale: int = 1) -> Image.Image:
        """As `Undecoded` has it."""
        return from_array(self.array)


def _uint8(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    try:
        return np.frombuffer(bytearray(values), np.uint8)  # twice as fast as by way of bytes
    except (TypeError, ValueError):
        raise InvalidRequest(
            "Pixels must be whole numbers from 0 to 255 in one flat list of data."
        ) from None


def open_image(data: bytes, max_pixels: int) -> UndecodedFile:
    """A file whose header was read; raises InvalidImage."""
    if not data:
        raise InvalidImage(f"The image is empty; send the bytes of {_formats()} file.")
    header = read_header(data)
    if header is None:
        raise InvalidImage(f"The bytes are no image that is accepted here: {_formats()}.")
    check_size(header.width, header.height, max_pixels)
    return UndecodedFile(header)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises InvalidImage for an image without pixels or with more than `max_pixels`."""
    if width < 1 or height < 1:
        raise InvalidImage(f"An image of {width}x{height} pixels has nothing to see.")
    if width * height > max_pixels:
        raise InvalidImage(
            f"An image of {width}x{height} pixels is too large; at most {max_pixels} are accepted."
        )


def from_array(array: np.ndarray) -> Image.Image:
    """The RGB image in `array`: uint8 `[H,W,C]` with C 1 (grey), 3 (RGB) or 4 (RGBA)."""
    if array.shape[2] == 1:
        return Image.fromarray(array[:, :, 0]).convert("RGB")
    return to_rgb(Image.fromarray(array))


def decode_bytes(header: ImageHeader, scale: int = 1) -> int:
    """Bytes of memory that decoding takes at its peak, the RGB image included."""
    width, height = -(-header.width // scale), -(-header.height // scale)
    stored = _image_bytes(width, height, header.pixel_bytes)
    loading = stored + header.decoder_bytes
    turning = 0 if header.orientation == 1 else 2 * stored
    band = 16 * max(width, BAND)  # four images of it
    converting = 0 if header.is_rgb else stored + _image_bytes(width, height, 4) + band
    return max(loading, turning, converting)


def _image_bytes(width: int, height: int, pixel_bytes: int) -> int:
    """Of an image in Pillow, whose rows are filled up to four bytes and have a pointer each."""
    return height * (-(-width * pixel_bytes // 4) * 4 + 8)


def _upright_and_close(image: Image.Image, turn: int) -> Image.Image:
    if turn == 1:
        return image
    turned = image.transpose(EXIF_TRANSPOSE[turn])
    image.close()
    return turned


def _to_rgb_and_close(image: Image.Image) -> Image.Image:
    rgb = to_rgb(image)
    if rgb is not image:
        image.close()
    return rgb


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode in RGB: transparency over white, 16 bits scaled down to 8. Colour profiles
    are not heeded, as timm does not."""
    deep = image.mode.startswith("I")  # I;16 and relatives; Pillow's own convert clips them
    if not deep and not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    for box in bands(image.width, 0, image.height):
        band = image.crop(box)
        rgb.paste(_scaled_down(band) if deep else _over_white(band), box)
    return rgb


def bands(width: int, upper: int, lower: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of an image's whole rows, from the first to before the last given, each of at most
    `BAND` pixels or of one row."""
    rows = max(1, BAND // width)
    for top in range(upper, lower, rows):
        yield 0, top, width, min(lower, top + rows)


def _over_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _scaled_down(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) / 257 + 0.5).astype(np.uint8)).convert("RGB")


def _formats() -> str:
    return f"a {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def _reason(error: Exception) -> str:
    text = str(error).splitlines()
    return text[0].rstrip(".") if isinstance(error, OSError) and text else "it cannot be decoded"
