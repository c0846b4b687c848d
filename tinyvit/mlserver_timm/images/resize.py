"""Pillow's resize of what a crop leaves, to the last bit, on several threads where an image is
large."""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from mlserver_timm.images.decode import BAND, bands
from mlserver_timm.images.idle_threads import IdleThreads

SUPPORT = {
    Image.Resampling.BILINEAR: 1,
    Image.Resampling.HAMMING: 1,
    Image.Resampling.BICUBIC: 2,
    Image.Resampling.LANCZOS: 3,
}
"""Pixels of the resized image to either side that a filter reads. The others that Pillow has end in
a step, where a rounding decides whether a pixel counts."""

LARGE = 2 * BAND
"""Pixels of an image from which on it is resized in parts: of smaller ones handing over costs what
it gains."""

EXACT = 2**24
"""Up to here all whole numbers have a place in four bytes, as which Pillow takes a box."""


def center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """As torchvision's CenterCrop, of an image that is as large at least."""
    top, left = crop_offset(image.height, height), crop_offset(image.width, width)
    return _crop(image, (left, top, left + width, top + height))


@dataclass(frozen=True)
class TwoStepResize:
    """First along the rows and then along the columns, as Pillow does and to the same pixels.

    From version 13 on Pillow begins with the columns where that takes away more than twice as many
    rows as columns go; so this is for others.
    """

    height: int
    width: int
    kept_height: int
    """Rows in the middle that the crop leaves, at most `height`."""
    kept_width: int
    how: Image.Resampling

    def __call__(self, image: Image.Image, helpers: IdleThreads | None = None) -> Image.Image:
        """RGB of `kept_height` and `kept_width`, from RGB."""
        rows = _span(image.height, self.height, self.kept_height, self.how)
        columns = _span(image.width, self.width, self.kept_width, self.how)
        if image.width * image.height < LARGE:
            image = _crop(image, (0, rows.upper, image.width, rows.lower))
        elif helpers and helpers.count:
            return self._in_parts(image, rows, columns, helpers)
        else:  # to copy what is read of it takes longer than to resize the other rows too
            rows = rows._replace(upper=0, lower=image.height)
        return self._along_columns(self._along_rows(image, columns), rows)

    def _in_parts(
        self, image: Image.Image, rows: "_Span", columns: "_Span", helpers: IdleThreads
    ) -> Image.Image:
        between = Image.new("RGB", (self.kept_width, rows.lower - rows.upper), None)
        resized = Image.new("RGB", (self.kept_width, self.kept_height), None)

        def along_rows(band: tuple[int, int, int, int]) -> None:
            part = _crop(image, band)
            between.paste(self._along_rows(part, columns), (0, band[1] - rows.upper))

        def along_columns(strip: tuple[int, int]) -> None:
            left, right = strip
            part = _crop(between, (left, 0, right, between.height))
            resized.paste(self._along_columns(part, rows), (left, 0))

        parts = list(bands(image.width, rows.upper, rows.lower))
        helpers.share(along_rows, parts)
        helpers.share(along_columns, _parts(self.kept_width, min(len(parts), 1 + helpers.count)))
        return resized

    def _along_rows(self, image: Image.Image, columns: "_Span") -> Image.Image:
        box = columns.begin, 0, columns.end, image.height
        image = image.resize((columns.made, image.height), self.how, box)
        return _crop(image, (columns.skip, 0, columns.skip + self.kept_width, image.height))

    def _along_columns(self, image: Image.Image, rows: "_Span") -> Image.Image:
        box = 0, rows.begin - rows.upper, image.width, rows.end - rows.upper
        image = image.resize((image.width, rows.made), self.how, box)
        return _crop(image, (0, rows.skip, image.width, rows.skip + self.kept_height))


class _Span(NamedTuple):
    """What is made of one edge, the kept middle and as little else as can be."""

    made: int
    """Pixels, of the resized image."""
    skip: int
    """How many of them come before the kept ones."""
    begin: float
    """Where they lie in the image, pixels."""
    end: float
    upper: int
    """The pixels of the image that are read for them."""
    lower: int


def _span(length: int, resized: int, kept: int, how: Image.Resampling) -> _Span:
    """Of an edge of so many pixels.

    The n-th pixel of the resized image begins at n * length / resized of the image. A box may only
    begin and end where this is a number that four bytes hold exactly: where the denominator is a
    power of two, which of `step` pixels one is.
    """
    first, last = 0, resized
    denominator = resized // math.gcd(length, resized)
    power = denominator & -denominator
    if how in SUPPORT and length * power <= EXACT:
        step = denominator // power
        first = crop_offset(resized, kept) // step * step
        last = -(-(crop_offset(resized, kept) + kept) // step) * step
    begin, end = first * length / resized, last * length / resized
    margin = 1 + math.ceil(SUPPORT.get(how, 0) * max(1, length / resized))
    upper, lower = max(0, math.floor(begin) - margin), min(length, math.ceil(end) + margin)
    return _Span(last - first, crop_offset(resized, kept) - first, begin, end, upper, lower)


def crop_offset(length: int, kept: int) -> int:
    """Where the middle begins that torchvision's CenterCrop leaves of an edge."""
    return round((length - kept) / 2)


def _crop(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    return image if box == (0, 0, *image.size) else image.crop(box)


def _parts(length: int, count: int) -> list[tuple[int, int]]:
    """Begin and end of so many parts, or fewer where there is less, each about as long."""
    count = min(length, count)
    return list(itertools.pairwise(length * i // count for i in range(count + 1)))
