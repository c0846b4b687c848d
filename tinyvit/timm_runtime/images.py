"""From encoded images and pixel arrays to RGB."""

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import (  # each plugin enters itself into Image.OPEN
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageOps,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from .errors import InvalidImage, InvalidRequest

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""All that is decoded. Pillow runs Ghostscript for EPS and follows files for some others."""

ORIENTATION = 0x0112  # EXIF tag 274


class ImageSource(Protocol):
    """One image of a request. It is cheap to make; what may be slow or fail is left to `open`."""

    def open(self) -> Image.Image:
        """An image whose pixels need not be decoded yet; raises InvalidImage or InvalidRequest."""
        ...


@dataclass(frozen=True)
class EncodedImage:
    """An image file: its bytes, or base64 text of them."""

    data: bytes | str
    max_pixels: int
    is_base64: bool = False

    def open(self) -> Image.Image:
        """An image whose header was read and whose pixels were not."""
        return open_image(self._file(), self.max_pixels)

    def _file(self) -> bytes:
        if isinstance(self.data, bytes) and not self.is_base64:
            return self.data
        try:
            return base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest(
                "The image is not valid base64 (standard alphabet, padded, without line breaks)."
            ) from None


@dataclass(frozen=True)
class PixelImage:
    """Part of a flat list of pixel values 0 to 255, rows of pixels of `channels` values each."""

    values: Sequence[Any]
    offset: int
    height: int
    width: int
    channels: int

    def open(self) -> Image.Image:
        size = self.height * self.width * self.channels
        whole = self.offset == 0 and len(self.values) == size
        values = self.values if whole else self.values[self.offset : self.offset + size]
        return from_array(_uint8(values).reshape(self.height, self.width, self.channels))


def _uint8(values: Sequence[Any]) -> np.ndarray:
    try:
        return np.frombuffer(bytearray(values), np.uint8)  # twice as fast as by way of bytes
    except (TypeError, ValueError):
        raise InvalidRequest(
            "Pixels must be whole numbers from 0 to 255 in one flat list of data."
        ) from None


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """An image whose header was read and whose pixels were not; raises InvalidImage."""
    if not data:
        raise InvalidImage(f"The image is empty; send the bytes of {_formats()} file.")
    try:
        image = _identified(data)
    except Exception:  # hostile headers raise nearly anything, struct.error and IndexError too
        image = None
    if image is None:
        raise InvalidImage(f"The bytes are no image that is accepted here: {_formats()}.")
    check_size(image.width, image.height, max_pixels)
    return image


def _identified(data: bytes) -> Image.Image | None:
    """As PIL.Image.open, less its limit on pixels, which is one for the whole process."""
    for name in FORMATS:
        factory, accepts = Image.OPEN[name]
        if not accepts or accepts(data[:16]) is True:
            return factory(io.BytesIO(data), "")
    return None


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


def decode(image: Image.Image) -> Image.Image:
    """Decoded, upright and in RGB, as a viewer shows it; raises InvalidImage."""
    try:
        image.load()
        return to_rgb(upright(image))
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise InvalidImage(f"The {image.format} image is damaged: {_reason(error)}.") from None


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; as it is where there is none, or a broken one."""
    try:
        return ImageOps.exif_transpose(image) if orientation(image) != 1 else image
    except Exception:  # broken EXIF hides no pixel, and viewers pass over it
        return image


def orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF counts them; 1 where nothing of that is said."""
    try:
        said = image.getexif().get(ORIENTATION)
    except Exception:
        return 1
    return said if isinstance(said, int) and 1 <= said <= 8 else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode in RGB: transparency over white, 16 bits scaled down to 8."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # I;16 and relatives from PNG; Pillow's own convert clips them
        return Image.fromarray((np.asarray(image) / 257 + 0.5).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _formats() -> str:
    return f"a {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def _reason(error: Exception) -> str:
    text = str(error).splitlines()
    return text[0].rstrip(".") if isinstance(error, OSError) and text else "it cannot be decoded"
