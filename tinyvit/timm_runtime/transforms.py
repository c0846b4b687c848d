"""timm's evaluation transform on Pillow alone: from an image to the network's pixels."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from .images import decode, orientation

DRAFT_GAP = 3
"""A JPEG is decoded at 1/2, 1/4 or 1/8 only where that leaves this many times the pixels the
resize needs along each edge; resizing then averages over nearly the same light. Photographs of 3
to 24 megapixels differ from timm's pixels by 0.25 of 255 in the mean and 3 at most, and their
probabilities by 0.004; the tests hold them to 0.5, 4 and 0.01, and sheer noise to 2 in the mean."""

DRAFT_PIXELS = 2_000_000
"""JPEGs with fewer are never decoded smaller, however small the network's input is."""

MAX_ASPECT = 64
"""Of strips longer than this many times their width only the middle is resized, which the crop
leaves: resized whole, a line of pixels would fill the memory. It costs a rounding, 1 of 255."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, pixels."""


@dataclass(frozen=True)
class EvaluationTransform:
    """timm's evaluation transform up to the pixels (timm.data.transforms_imagenet_eval), on Pillow
    alone, so that serving a converted network does without torch."""

    size: tuple[int, int]
    """Height and width of the network's input."""
    interpolation: str
    crop_pct: float
    crop_mode: str
    fill: tuple[int, int, int]
    """Colour of the border in crop mode `border`: the checkpoint's mean."""
    exact: bool = True
    """Else only what the crop leaves is resized, twice as fast; Pillow's box has four bytes for a
    number, and some pixels differ by 1 of 255, of strips by 2."""

    def __call__(self, image: Image.Image) -> np.ndarray:
        """uint8 `[H,W,3]` of an image in any mode, decoding it first; raises InvalidImage."""
        box = self._draft(image)
        decoded = decode(image)
        return np.asarray(self._crop(self._resize(decoded, box or (0, 0, *decoded.size))))

    def _draft(self, image: Image.Image) -> Box | None:
        """Has a large JPEG decoded smaller. Where its pixels will lie, once it is upright: along
        an edge that the scale does not divide, libjpeg fills the last pixel up."""
        scale = min(image.size) / (DRAFT_GAP * max(self._target()))
        if image.format != "JPEG" or scale < 2 or image.width * image.height < DRAFT_PIXELS:
            return None
        drafted = image.draft("RGB", (int(image.width / scale), int(image.height / scale)))
        return _turned(drafted[1], image) if drafted else None

    def _target(self) -> tuple[int, int]:
        height, width = self.size
        return math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)

    def _resize(self, image: Image.Image, box: Box) -> Image.Image:
        height, width = self._resized(box[3] - box[1], box[2] - box[0])
        if not self.exact or max(height, width) > MAX_ASPECT * min(height, width):
            box, height, width = self._trim(box, height, width)
        return image.resize((width, height), Image.Resampling[self.interpolation.upper()], box)

    def _resized(self, height: float, width: float) -> tuple[int, int]:
        target = self._target()
        if self.crop_mode == "squash":
            return target
        if self.crop_mode != "border" and target[0] == target[1]:  # torchvision's Resize(int)
            short, long = sorted((height, width))
            other = int(target[0] * long / short)
            return (target[0], other) if height <= width else (other, target[0])
        ratios = height / target[0], width / target[1]  # timm's ResizeKeepRatio
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _trim(self, box: Box, height: int, width: int) -> tuple[Box, int, int]:
        """What the crop leaves of the image in `box`, which would be resized to this size."""
        rows, columns = min(height, self.size[0]), min(width, self.size[1])
        top, left = round((height - rows) / 2), round((width - columns) / 2)
        y, x = (box[3] - box[1]) / height, (box[2] - box[0]) / width
        upper, leftmost = box[1] + top * y, box[0] + left * x
        return (leftmost, upper, leftmost + columns * x, upper + rows * y), rows, columns

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


def _turned(box: Box, image: Image.Image) -> Box:
    """A box at the origin of an image, after `upright`."""
    turn, (_, _, width, height) = orientation(image), box
    left = image.width - width if turn in (2, 3, 7, 8) else 0
    top = image.height - height if turn in (3, 4, 6, 7) else 0
    if turn < 5:
        return left, top, left + width, top + height
    return top, left, top + height, left + width


def _center(image: Image.Image, height: int, width: int) -> Image.Image:
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))
