"""timm's evaluation transform on Pillow alone: from an image to the network's pixels."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from mlserver_timm.images.decode import Undecoded, decode_bytes
from mlserver_timm.images.headers.base import ImageHeader
from mlserver_timm.images.idle_threads import IdleThreads
from mlserver_timm.images.resize import LARGE, TwoStepResize, center_crop, crop_offset

DRAFT_GAP = 3
"""Where the engine is inexact, a JPEG is decoded at 1/2, 1/4 or 1/8 if that leaves this many times
the pixels the resize needs along each edge. Of 65 photographs of 3 to 24 megapixels, sharpened and
with grain, a score of the sample then differs by up to 0.032 from timm's, and by up to 0.012 with
a gap of 8; so it is not done for fp32."""

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
    """Else large JPEGs are decoded smaller, and only what the crop leaves is resized, twice as
    fast; Pillow's box has four bytes for a number, and some pixels differ by 1 of 255, of strips
    by 2."""

    def __call__(self, image: Undecoded, helpers: IdleThreads | None = None) -> np.ndarray:
        """uint8 `[H,W,3]` of an image, decoding it first; raises InvalidImage."""
        scale = self._scale(image)
        decoded = image.decode(scale)
        box = _box(image.header, scale) if scale > 1 else (0, 0, *decoded.size)
        return np.asarray(self._crop(self._resize(decoded, box, helpers)))

    def memory(self, image: Undecoded) -> int:
        """Bytes that a call takes at its peak, at most; beside these each thread that resizes a
        part of the image has a copy of that part, a megabyte."""
        header = image.header
        width, height = header.width, header.height
        if header.orientation >= 5:
            width, height = height, width
        box, rows, columns = self._kept((0, 0, width, height))
        between = columns * math.ceil(box[3] - box[1])  # Pillow resizes along the rows first
        copied = width * height if width * height < LARGE else 0
        resizing = copied + 2 * between + rows * columns
        return decode_bytes(header, self._scale(image)) + 4 * resizing

    def _scale(self, image: Undecoded) -> int:
        """How many times smaller an image is decoded: 1, or for a JPEG 2, 4 or 8."""
        header = image.header
        gap = min(header.width, header.height) / (DRAFT_GAP * max(self._target()))
        pixels = header.width * header.height
        if self.exact or header.format != "JPEG" or gap < 2 or pixels < DRAFT_PIXELS:
            return 1
        return 8 if gap >= 8 else 4 if gap >= 4 else 2

    def _target(self) -> tuple[int, int]:
        height, width = self.size
        return math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)

    def _resize(
        self, image: Image.Image, box: Box, helpers: IdleThreads | None = None
    ) -> Image.Image:
        box, height, width = self._kept(box)
        how = Image.Resampling[self.interpolation.upper()]
        fewer_rows, fewer_columns = image.height - height, image.width - width
        whole = box == (0, 0, *image.size)
        if whole and 0 < fewer_rows <= 2 * fewer_columns and how != Image.Resampling.NEAREST:
            resize = TwoStepResize(height, width, *self._left_by_crop(height, width), how)
            return resize(image, helpers)
        return image.resize((width, height), how, box)

    def _kept(self, box: Box) -> tuple[Box, int, int]:
        """How much of the image in `box` is resized, and to which height and width."""
        height, width = self._resized(box[3] - box[1], box[2] - box[0])
        if not self.exact or max(height, width) > MAX_ASPECT * min(height, width):
            return self._trim(box, height, width)
        return box, height, width

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

    def _left_by_crop(self, height: int, width: int) -> tuple[int, int]:
        return min(height, self.size[0]), min(width, self.size[1])

    def _trim(self, box: Box, height: int, width: int) -> tuple[Box, int, int]:
        """What the crop leaves of the image in `box`, which would be resized to this size."""
        rows, columns = self._left_by_crop(height, width)
        top, left = crop_offset(height, rows), crop_offset(width, columns)
        y, x = (box[3] - box[1]) / height, (box[2] - box[0]) / width
        upper, leftmost = box[1] + top * y, box[0] + left * x
        return (leftmost, upper, leftmost + columns * x, upper + rows * y), rows, columns

    def _crop(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        if image.height < height or image.width < width:
            image = self._pad(image)
        return center_crop(image, height, width)

    def _pad(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        down, right = max(0, height - image.height), max(0, width - image.width)
        fill = self.fill if self.crop_mode == "border" else 0
        return ImageOps.expand(
            image, (right // 2, down // 2, (right + 1) // 2, (down + 1) // 2), fill
        )


def _box(header: ImageHeader, scale: int) -> Box:
    """Where the pixels of an image decoded smaller lie, once it is upright: along an edge that the
    scale does not divide, libjpeg fills the last pixel up."""
    width, height, turn = header.width / scale, header.height / scale, header.orientation
    left = math.ceil(width) - width if turn in (2, 3, 7, 8) else 0
    top = math.ceil(height) - height if turn in (3, 4, 6, 7) else 0
    if turn < 5:
        return left, top, left + width, top + height
    return top, left, top + height, left + width
