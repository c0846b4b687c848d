"""timm's evaluation transform on Pillow alone: from an opened image to the network's pixels."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from mlserver_timm.images.decode import UprightImage, load, orientation_of
from mlserver_timm.images.resize import TwoStepResize, center_crop, crop_offset

DRAFT_GAP = 3
"""With bf16, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if each edge then still has this many
times the pixels that the resize needs. fp32 does not do this, because scores change: by up to 0.032
from timm's, or 0.012 with a gap of 8, measured with the sample on 65 sharpened and grainy
photographs of 3 to 24 megapixels."""

DRAFT_PIXELS = 2_000_000
"""JPEGs with fewer pixels are never decoded smaller, however small the network's input is."""

MAX_ASPECT = 64
"""Only the middle of longer strips is resized, which is what the crop keeps: a line of pixels
resized as a whole would fill the memory. This costs a rounding, 1 of 255."""

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge, in pixels."""


@dataclass(frozen=True)
class EvaluationTransform:
    """timm's evaluation transform up to the pixels (timm.data.transforms_imagenet_eval), on Pillow
    alone, so that a converted network is served without torch."""

    size: tuple[int, int]
    """Height and width of the network's input."""
    interpolation: str
    crop_pct: float
    crop_mode: str
    fill: tuple[int, int, int]
    """Colour of the border in crop mode `border`: the checkpoint's mean."""
    exact: bool = True
    """Whether the pixels must equal timm's. Otherwise large JPEGs are decoded smaller, and only
    what the crop keeps is resized: twice as fast, but some pixels differ by 1 of 255, in strips by
    2, because Pillow's box consists of 4-byte floats."""

    def __call__(self, image: Image.Image, threads: int = 1) -> np.ndarray:
        """Return uint8 `[H,W,3]` of an opened image, which is decoded first.

        Raises DamagedImage.
        """
        scale = self._scale(image)
        stored_size = image.size
        load(image, scale)
        orientation = orientation_of(image)
        upright = UprightImage(image, orientation)
        box = _box(stored_size, orientation, scale) if scale > 1 else (0, 0, *upright.size)
        return np.asarray(self._crop(self._resize(upright, box, threads)))

    def _scale(self, image: Image.Image) -> int:
        """Return how many times smaller an image is decoded: 1, or for a JPEG 2, 4 or 8."""
        gap = min(image.size) / (DRAFT_GAP * max(self._target()))
        pixels = image.width * image.height
        if self.exact or image.format != "JPEG" or gap < 2 or pixels < DRAFT_PIXELS:
            return 1
        return 8 if gap >= 8 else 4 if gap >= 4 else 2

    def _target(self) -> tuple[int, int]:
        height, width = self.size
        return math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)

    def _resize(self, image: UprightImage, box: Box, threads: int = 1) -> Image.Image:
        box, height, width = self._kept(box)
        filter_ = Image.Resampling[self.interpolation.upper()]
        fewer_rows, fewer_columns = image.height - height, image.width - width
        is_whole = box == (0, 0, *image.size)
        if is_whole and 0 < fewer_rows <= 2 * fewer_columns and filter_ != Image.Resampling.NEAREST:
            kept = self._kept_by_crop(height, width)
            return TwoStepResize(height, width, *kept, filter_)(image, threads)
        return image.whole().resize((width, height), filter_, box)

    def _kept(self, box: Box) -> tuple[Box, int, int]:
        """Return which part of the image in `box` is resized, and to which height and width."""
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

    def _kept_by_crop(self, height: int, width: int) -> tuple[int, int]:
        return min(height, self.size[0]), min(width, self.size[1])

    def _trim(self, box: Box, height: int, width: int) -> tuple[Box, int, int]:
        """Return what the crop keeps of the image in `box`, which would be resized to this size."""
        rows, columns = self._kept_by_crop(height, width)
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


def _box(stored_size: tuple[int, int], orientation: int, scale: int) -> Box:
    """Return where the pixels of an image decoded smaller lie, once it is upright: along an edge
    that the scale does not divide, libjpeg fills up the last pixel."""
    width, height = stored_size[0] / scale, stored_size[1] / scale
    left = math.ceil(width) - width if orientation in (2, 3, 7, 8) else 0
    top = math.ceil(height) - height if orientation in (3, 4, 6, 7) else 0
    if orientation < 5:
        return left, top, left + width, top + height
    return top, left, top + height, left + width
