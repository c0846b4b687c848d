"""Pillow's resize, on several threads and without the columns that a crop does not leave."""

import itertools
from dataclasses import dataclass

from PIL import Image

from .idle_threads import IdleThreads
from .images import BAND, bands


def center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """As torchvision's CenterCrop, of an image that is as large at least."""
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class TwoStepResize:
    """First along the rows and then along the columns, as Pillow does and to the same pixels; but
    along the columns only those that the crop leaves.

    From version 13 on Pillow begins with the columns where that takes away more than twice as many
    rows as columns go; so this is for others. Rows that go it makes all the same: their place would
    have to be a box of four-byte numbers.
    """

    height: int
    width: int
    kept_width: int
    """Columns in the middle that the crop leaves, at most `width`."""
    how: Image.Resampling

    def __call__(self, image: Image.Image, helpers: IdleThreads | None = None) -> Image.Image:
        """RGB of `height` and `kept_width`, from RGB."""
        # Of smaller images handing over costs what it gains.
        if helpers and helpers.count and image.width * image.height >= 2 * BAND:
            return self._in_parts(image, helpers)
        return self._along_columns(self._along_rows(image))

    def _in_parts(self, image: Image.Image, helpers: IdleThreads) -> Image.Image:
        rows = list(bands(image))
        columns = _parts(self.kept_width, min(len(rows), 1 + helpers.count))
        between = Image.new("RGB", (self.kept_width, image.height), None)
        resized = Image.new("RGB", (self.kept_width, self.height), None)

        def along_rows(band: tuple[int, int, int, int]) -> None:
            between.paste(self._along_rows(image.crop(band)), (0, band[1]))

        def along_columns(part: tuple[int, int]) -> None:
            left, right = part
            strip = between.crop((left, 0, right, between.height))
            resized.paste(self._along_columns(strip), (left, 0))

        helpers.share(along_rows, rows)
        helpers.share(along_columns, columns)
        return resized

    def _along_rows(self, image: Image.Image) -> Image.Image:
        image = image.resize((self.width, image.height), self.how)
        if self.width > self.kept_width:
            image = center_crop(image, image.height, self.kept_width)
        return image

    def _along_columns(self, image: Image.Image) -> Image.Image:
        return image.resize((image.width, self.height), self.how)


def _parts(length: int, count: int) -> list[tuple[int, int]]:
    """Begin and end of so many parts, or fewer where there is less, each about as long."""
    count = min(length, count)
    return list(itertools.pairwise(length * i // count for i in range(count + 1)))
