"""Pillow's resize of what a crop keeps: the same pixels, in less time and memory."""

import itertools
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from PIL import Image

from mlserver_timm.images.decode import BAND_PIXELS, UprightImage, bands

T = TypeVar("T")

SUPPORT = {
    Image.Resampling.BILINEAR: 1,
    Image.Resampling.HAMMING: 1,
    Image.Resampling.BICUBIC: 2,
    Image.Resampling.LANCZOS: 3,
}
"""Pixels of the resized image that a filter reads on either side. The other filters of Pillow end
in a step, where a rounding decides whether a pixel counts."""

LARGE = 2 * BAND_PIXELS
"""Pixels from which an image is resized in parts. Smaller images do not gain by it."""

EXACT = 2**24
"""Up to this number a 4-byte float holds every integer; Pillow stores a box in such floats."""


def center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Return the middle of an image, as torchvision's CenterCrop does for one that is larger."""
    top, left = crop_offset(image.height, height), crop_offset(image.width, width)
    return _crop(image, (left, top, left + width, top + height))


@dataclass(frozen=True)
class TwoStepResize:
    """Resize along the rows, then along the columns, to the same pixels as `Image.resize`.

    Since version 13, Pillow resizes along the columns first if the height shrinks by more than
    twice as many pixels as the width. This class is for all other images.
    """

    height: int
    width: int
    kept_height: int
    """Rows in the middle that the crop keeps, at most `height`."""
    kept_width: int
    filter: Image.Resampling

    def __call__(self, image: UprightImage, threads: int = 1) -> Image.Image:
        """Return RGB of `kept_height` and `kept_width`; large images use several threads."""
        rows = _span(image.height, self.height, self.kept_height, self.filter)
        columns = _span(image.width, self.width, self.kept_width, self.filter)
        is_large = image.width * image.height >= LARGE
        if is_large and (threads > 1 or not image.is_plain):
            return self._in_parts(image, rows, columns, threads)
        if is_large:  # copying the rows that are needed takes longer than resizing all
            rows = rows._replace(upper=0, lower=image.height)
        part = image.crop((0, rows.upper, image.width, rows.lower))
        return self._along_columns(self._along_rows(part, columns), rows)

    def _in_parts(
        self, image: UprightImage, rows: "_Span", columns: "_Span", threads: int
    ) -> Image.Image:
        between = Image.new("RGB", (self.kept_width, rows.lower - rows.upper), None)
        resized = Image.new("RGB", (self.kept_width, self.kept_height), None)

        def along_rows(band: tuple[int, int, int, int]) -> None:
            between.paste(self._along_rows(image.crop(band), columns), (0, band[1] - rows.upper))

        def along_columns(strip: tuple[int, int]) -> None:
            left, right = strip
            part = _crop(between, (left, 0, right, between.height))
            resized.paste(self._along_columns(part, rows), (left, 0))

        _share(along_rows, bands(image.width, rows.upper, rows.lower), threads)
        _share(along_columns, _parts(self.kept_width, threads), threads)
        return resized

    def _along_rows(self, image: Image.Image, columns: "_Span") -> Image.Image:
        box = columns.begin, 0, columns.end, image.height
        image = image.resize((columns.made, image.height), self.filter, box)
        return _crop(image, (columns.skip, 0, columns.skip + self.kept_width, image.height))

    def _along_columns(self, image: Image.Image, rows: "_Span") -> Image.Image:
        box = 0, rows.begin - rows.upper, image.width, rows.end - rows.upper
        image = image.resize((image.width, rows.made), self.filter, box)
        return _crop(image, (0, rows.skip, image.width, rows.skip + self.kept_height))


def _share(work: Callable[[T], None], parts: Iterable[T], threads: int) -> None:
    """Do the work for each part, on several threads; raise what the work raises."""
    if threads == 1:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, parts))


class _Span(NamedTuple):
    """One edge of the image, reduced to the kept middle and the little that resizing it needs."""

    made: int
    """Pixels that are made of the resized edge, at least the kept ones."""
    skip: int
    """Made pixels before the kept ones."""
    begin: float
    """Position in the image at which the made pixels begin, in pixels."""
    end: float
    """Position at which they end."""
    upper: int
    """First pixel of the image that is read."""
    lower: int
    """First pixel after those that are read."""


def _span(length: int, resized: int, kept: int, filter_: Image.Resampling) -> _Span:
    """Return what is made of an edge of `length` pixels.

    Pixel n of the resized image begins at n * length / resized of the image. A box may begin and
    end only where this is a number that a 4-byte float holds exactly: where the denominator is a
    power of two, which holds for one of `step` pixels.
    """
    first, last = 0, resized
    denominator = resized // math.gcd(length, resized)
    power = denominator & -denominator
    if filter_ in SUPPORT and length * power <= EXACT:
        step = denominator // power
        first = crop_offset(resized, kept) // step * step
        last = -(-(crop_offset(resized, kept) + kept) // step) * step
    begin, end = first * length / resized, last * length / resized
    margin = 1 + math.ceil(SUPPORT.get(filter_, 0) * max(1, length / resized))
    upper, lower = max(0, math.floor(begin) - margin), min(length, math.ceil(end) + margin)
    return _Span(last - first, crop_offset(resized, kept) - first, begin, end, upper, lower)


def crop_offset(length: int, kept: int) -> int:
    """Return where the middle begins that torchvision's CenterCrop keeps of an edge."""
    return round((length - kept) / 2)


def _crop(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    return image if box == (0, 0, *image.size) else image.crop(box)


def _parts(length: int, count: int) -> list[tuple[int, int]]:
    """Return begin and end of `count` parts of about equal length."""
    count = min(length, count)
    return list(itertools.pairwise(length * i // count for i in range(count + 1)))
