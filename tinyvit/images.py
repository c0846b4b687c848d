"""From encoded images or pixel arrays to the network's input: RGB, resized and cropped."""

import io
import math
from dataclasses import dataclass

import numpy as np
from mlserver.errors import MLServerError
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""All that is decoded. Pillow runs Ghostscript for EPS and follows files for some others."""

DRAFT_GAP = 3
"""A JPEG is decoded at 1/2, 1/4 or 1/8 only where that leaves this many times the pixels the
resize needs along each edge; bicubic resizing then averages over nearly the same light."""

MAX_ASPECT = 64
"""Strips longer than this many times their width are cut to it, around the middle."""

ORIENTATION = 0x0112  # EXIF tag 274

Image.MAX_IMAGE_PIXELS = None  # open_image has a limit of its own, which is a setting


class ImageError(MLServerError):
    """What was sent makes no image; the message says why and what does."""


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """An image whose header was read and whose pixels were not; raises ImageError."""
    if not data:
        raise ImageError(f"The image is empty; send the bytes of {_formats()} file.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:  # hostile headers raise nearly anything, struct.error and IndexError too
        raise ImageError(f"The bytes are no image that is accepted here: {_formats()}.") from None
    check_size(image.width, image.height, max_pixels)
    return image


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises ImageError for an image without pixels or with more than `max_pixels`."""
    if width < 1 or height < 1:
        raise ImageError(f"An image of {width}x{height} pixels has nothing to see.")
    if width * height > max_pixels:
        raise ImageError(
            f"An image of {width}x{height} pixels is too large; at most {max_pixels} are accepted."
        )


def from_array(array: np.ndarray) -> Image.Image:
    """The RGB image in `array`: uint8 `[H,W,C]` with C 1 (grey), 3 (RGB) or 4 (RGBA)."""
    if array.shape[2] == 1:
        return Image.fromarray(array[:, :, 0]).convert("RGB")
    return to_rgb(Image.fromarray(array))


def decode(image: Image.Image) -> Image.Image:
    """Decoded, upright and in RGB, as a viewer shows it; raises ImageError."""
    try:
        image.load()
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise ImageError(f"The {image.format} image is damaged: {_reason(error)}.") from None
    return to_rgb(upright(image))


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; as it is where there is none, or a broken one."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # broken EXIF hides no pixel, and viewers pass over it
        return image


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


@dataclass(frozen=True)
class Preprocessing:
    """timm's evaluation transform up to the pixels (timm.data.transforms_imagenet_eval), on Pillow
    alone, so that serving a converted network does without torch."""

    size: tuple[int, int]
    """Height and width of the network's input."""
    interpolation: str
    crop_pct: float
    crop_mode: str
    fill: tuple[int, int, int]
    """Colour of the border in crop mode `border`: the checkpoint's mean."""

    def __call__(self, image: Image.Image) -> np.ndarray:
        """uint8 `[H,W,3]` of an image in any mode, decoding it first; raises ImageError."""
        if image.format == "JPEG":
            self._draft(image)
        return np.asarray(self._crop(self._resize(self._trim(decode(image)))))

    def _draft(self, image: Image.Image) -> None:
        shortest = DRAFT_GAP * max(self._target())
        scale = min(image.size) / shortest
        if scale >= 2:
            image.draft("RGB", (int(image.width / scale), int(image.height / scale)))

    def _trim(self, image: Image.Image) -> Image.Image:
        """A strip beyond MAX_ASPECT without the ends that the crop would cut off anyway: resized
        whole, a line of pixels would fill the memory."""
        if self.crop_mode in ("squash", "border"):
            return image
        longest = MAX_ASPECT * min(image.size)
        return _center(image, min(image.height, longest), min(image.width, longest))

    def _target(self) -> tuple[int, int]:
        height, width = self.size
        return math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)

    def _resize(self, image: Image.Image) -> Image.Image:
        size = self._resized(image.height, image.width)
        return image.resize((size[1], size[0]), Image.Resampling[self.interpolation.upper()])

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        target = self._target()
        if self.crop_mode == "squash":
            return target
        if self.crop_mode != "border" and target[0] == target[1]:  # torchvision's Resize(int)
            short, long = sorted((height, width))
            other = int(target[0] * long / short)
            return (target[0], other) if height <= width else (other, target[0])
        ratios = height / target[0], width / target[1]  # timm's ResizeKeepRatio
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return round(height / ratio), round(width / ratio)

    def _crop(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        if image.height < height or image.width < width:
            image = self._pad(image)
        return _center(image, height, width)

    def _pad(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        down, right = max(0, height - image.height), max(0, width - image.width)
        fill = self.fill if self.crop_mode == "border" else 0
        return ImageOps.expand(
            image, (right // 2, down // 2, (right + 1) // 2, (down + 1) // 2), fill
        )


def _center(image: Image.Image, height: int, width: int) -> Image.Image:
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _formats() -> str:
    return f"a {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def _reason(error: Exception) -> str:
    text = str(error).splitlines()
    return text[0].rstrip(".") if isinstance(error, OSError) and text else "it cannot be decoded"
