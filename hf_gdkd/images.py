"""An image as it is stored -> RGB pixels, upright, or one sentence on why it cannot be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Image
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from .errors import InputError, first_sentence


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
    """The rows of a data set, each with its `image` opened; an image that cannot be read is an error with its row."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], what: str = "") -> None:
        if isinstance(rows, Dataset):
            rows = rows.cast_column("image", Image(decode=False))
        self.rows, self.what = rows, what

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        sample = self.rows[row]
        return {**sample, "image": open_image(sample["image"], f"{self.what}image in row {row}")}
