"""The rows of a data set with their images opened, each decoded once for all its crops and no larger than they need."""

from __future__ import annotations

import io
import operator
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from datasets import Dataset, Image
from PIL import ExifTags, JpegImagePlugin
from PIL import Image as PILImage

from .decoding import check_size, open_image
from .selection import ROW

KEPT_BYTES = 256 * 2**20  # of decoded images that stay in memory
KEPT_OVERHEAD = 2048  # of Python and Pillow, for each image


class Picture:
    """An image that is decoded when it is needed, and then stays so.

    Args:
        stored: an image of `datasets` (its `bytes`, or the file at its `path`), or one that is decoded already.
        what: how errors name it.

    Raises:
        ImageError: of every method; it cannot be read.
    """

    def __init__(self, stored: PILImage.Image | Mapping | None, what: str = "image") -> None:
        self.stored, self.what = stored, what
        self._decoded: dict[int, PILImage.Image] = {}

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height, upright; a JPEG is not decoded for that."""
        return (self._jpeg_size if isinstance(self.stored, Mapping) else None) or self.decoded().size

    @cached_property
    def _jpeg_size(self) -> tuple[int, int] | None:
        """None where it is no JPEG; what else is wrong with it is said when it is decoded."""
        data, path = self.stored["bytes"], self.stored["path"]
        with suppress(Exception), PILImage.open(path if data is None else io.BytesIO(data)) as image:
            if isinstance(image, JpegImagePlugin.JpegImageFile):
                lies = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
                return image.size[::-1] if lies else image.size

    def decoded(self, reduction: int = 1) -> PILImage.Image:
        """RGB; a JPEG at 1 / reduction of its width and height."""
        if reduction not in self._decoded:
            self._decoded[reduction] = open_image(self.stored, self.what, reduction)
        return self._decoded[reduction]

    def crop(self, top: int, left: int, height: int, width: int, *, least: int | None = None) -> PILImage.Image:
        """A part of the image.

        A JPEG is decoded at a half, a quarter or an eighth of its size where the part then still has `least` pixels in
        width and height; its edges move to the nearest whole pixel. None: always at full size.
        """
        reduction = 1
        if least is not None and isinstance(self.stored, Mapping) and self._jpeg_size:
            reduction = next(n for n in (8, 4, 2, 1) if n == 1 or min(height, width) >= n * least)
        image = self.decoded(reduction)
        edges = (round(edge / reduction) for edge in (left, top, left + width, top + height))
        return image.crop(tuple(map(min, edges, image.size * 2)))


class Opened(Sequence):
    """The rows of a data set, each with its `image` opened; an image that cannot be read is an error with its row.

    The row is the number in the column `sample_id`, if there is one: where it stands in the data set on disk.

    Images so small that a whole data set of them takes at most KEPT_BYTES stay open: to read and decode them in every
    epoch anew costs more than to train a small model on them.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if isinstance(rows, Dataset):
            rows = rows.cast_column("image", Image(decode=False))
        self.rows = rows
        self._kept: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        sample = self.undecoded(row)
        return sample | {"image": sample["image"].decoded()}

    def undecoded(self, row: int) -> dict[str, Any]:
        """The row with its `image` as a Picture."""
        row = row_index(row, len(self))
        if row in self._kept:
            return dict(self._kept[row])
        sample = self.rows[row]
        number = sample.get(ROW, row)
        image, mask = Picture(sample["image"], f"image in row {number}"), sample.get("labels")
        sample = {**sample, "image": image}
        masked = isinstance(mask, PILImage.Image)
        if masked:
            check_size(image.decoded(), mask, f"mask in row {number}")
        width, height = image.size
        if ((3 + masked) * width * height + KEPT_OVERHEAD) * len(self) <= KEPT_BYTES:
            self._kept[row] = dict(sample)
        return sample


def row_index(index: int, rows: int) -> int:
    """The index of a row from 0 on; negative ones count from the end.

    Raises:
        IndexError: there is no such row.
    """
    if not -rows <= (index := operator.index(index)) < rows:
        raise IndexError(f"row {index} of {rows}")
    return index % rows
