"""Images as they are stored -> RGB pixels, upright, or one sentence on why they cannot be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch.distributed as dist
from datasets import Dataset, Image
from PIL import Image as PILImage
from PIL import UnidentifiedImageError
from tqdm.auto import tqdm

from ..errors import InputError, first_sentence

CHECKED_ROWS = 20_000  # images decoded before training, unless bad ones are skipped: then it is all of them

KEPT_BYTES = 256 * 2**20  # of decoded images that stay in memory


class ImageError(InputError):
    """An image that cannot be read."""


def to_rgb(image: PILImage.Image) -> PILImage.Image:
    """The image as RGB: colours under transparency stay what they are, 16-bit grey is scaled (Pillow clips it)."""
    if image.mode.startswith("I"):
        image = PILImage.fromarray(((np.asarray(image, np.int64) + 128) // 257).clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def open_image(stored: PILImage.Image | Mapping | None, what: str = "image") -> PILImage.Image:
    """Decode an image of `datasets` (its `bytes`, or the file at its `path`) to RGB, turned as its EXIF data say.

    Args:
        stored: {"bytes", "path"}, or an image that is decoded already.
        what: how the error names it, such as "image in row 3".

    Raises:
        ImageError: it is missing, empty, cut off, no image, or so large that Pillow takes it for an attack.
    """
    try:
        return to_rgb(Image().decode_example(stored) if isinstance(stored, Mapping) else stored)
    except (ConnectionError, TimeoutError):
        raise  # says nothing about the image
    except Exception as error:  # whatever a decoder stumbles on
        path = stored["path"] if isinstance(stored, Mapping) else None
        reason = "it is in no image format" if isinstance(error, UnidentifiedImageError) else first_sentence(error)[:-1]
        raise ImageError(
            f"{what}{f' ({path})' if path else ''} cannot be read ({'it is missing' if stored is None else reason}): "
            "remove or replace it, or leave out all such images with --on_bad_image skip."
        ) from error


class Opened(Sequence):
    """The rows of a data set, each with its `image` opened; an image that cannot be read is an error with its row.

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
        if row in self._kept:
            return dict(self._kept[row])
        sample = self.rows[row]
        sample = {**sample, "image": open_image(sample["image"], f"image in row {row}")}
        if 3 * sample["image"].width * sample["image"].height * len(self) <= KEPT_BYTES:
            self._kept[row] = dict(sample)
        return sample


def check_images(rows: Dataset, what: str, *, skip: bool = False) -> tuple[Dataset, int]:
    """The rows whose images can be read, and the number of those whose images cannot.

    Every image is decoded, in threads and, where there are several processes, by each process a share of them. Unless
    bad ones are skipped, a data set of over 20,000 rows is not searched: they are errors as they are read.

    Raises:
        InputError: an image that cannot be read, with its row, unless `skip`; no image that can.
    """
    if len(rows) > CHECKED_ROWS and not skip:
        return rows, 0

    stored = rows.cast_column("image", Image(decode=False))

    def problem(row: int) -> ImageError | None:
        try:
            open_image(stored[row]["image"], f"{what}image in row {row}")
        except ImageError as error:
            return error

    shared = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
    bad = []
    with ThreadPoolExecutor() as pool:
        for start in tqdm(range(0, len(rows), 1000), desc=what, leave=False, disable=len(rows) < 2000):
            share = range(start + rank, min(start + 1000, len(rows)), world)
            for row, error in zip(share, pool.map(problem, share), strict=True):
                if error is not None and not skip:
                    raise error
                if error is not None:
                    bad.append(row)
    if shared:
        dist.all_gather_object(everyone := [None] * world, bad)
        bad = [row for rows_of_one in everyone for row in rows_of_one]
    if not bad:
        return rows, 0
    if len(bad) == len(rows):
        raise InputError(f"{what}not one of {len(rows)} images can be read: check the files.")
    return rows.select(sorted(set(range(len(rows))) - set(bad))), len(bad)
