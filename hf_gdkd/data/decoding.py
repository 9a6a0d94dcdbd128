"""Images as they are stored -> RGB pixels, upright, or one sentence on why they cannot be read."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from datasets import Dataset, Image
from datasets.utils.file_utils import is_local_path
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from ..errors import InputError, first_sentence
from .selection import ROW

logger = logging.getLogger(__name__)

CHECKED_ROWS = 20_000  # images decoded before training, unless bad ones are skipped: then it is all of them

WHITES = {"i": [2**bits - 1 for bits in (8, 12, 16, 24, 31)], "f": [1, 255, 65535]}
ELONGATED = 16  # sides of an image: above this ratio, a view that crops gets the middle alone


Result = TypeVar("Result")


class ImageError(InputError):
    """An image that cannot be read."""


def to_rgb(image: PILImage.Image, what: str = "image") -> PILImage.Image:
    """The image as RGB of 8 bits; colours under transparency stay what they are.

    Grey values of more than 8 bits are scaled so that white is the smallest of 255, 4095, 65535, 2**24 - 1 and
    2**31 - 1 (whole numbers) or of 1, 255 and 65535 (floats) that no value exceeds; where that is not the full range
    of 16 bits, a warning says so, once.

    Raises:
        ImageError: values below 0, above 65535 (floats) or not finite.
    """
    if image.mode == "RGB":
        return image
    if image.mode[0] in "IF":
        image = _to_8_bits(image, what)
    return image.convert("RGB")


def _to_8_bits(image: PILImage.Image, what: str) -> PILImage.Image:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    whites = WHITES["f" if image.mode == "F" else "i"]
    if not (low >= 0 and high <= whites[-1]):  # nor NaN
        raise ImageError(
            f"{what} has values from {low:g} to {high:g}, expected {'0 to 1, 0 to 255 or' if image.mode == 'F' else ''}"
            f" 0 to {whites[-1]}: scale the images to 8 bits."
        )
    white = next(white for white in whites if high <= white)
    if white != 65535:
        kind = "floats" if image.mode == "F" else f"{16 if ';16' in image.mode else 32}-bit values"
        warn_once(f"white {image.mode} {white}", f"{what} has {kind} up to {high:g}: white is taken to be {white}.")
    return PILImage.fromarray(np.rint(values.astype(np.float64) * (255 / white)).astype(np.uint8))


def decode(stored: Mapping[str, Any], what: str, reduction: int = 1) -> PILImage.Image:
    """As `datasets.Image` does, turned upright, and with an eye on colours of 16 bits, which Pillow cuts to 8."""
    data, path = stored["bytes"], stored["path"]
    if data is None and (path is None or not is_local_path(path)):
        return Image().decode_example(stored)
    image = PILImage.open(path if data is None else io.BytesIO(data))
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))  # by the JPEG decoder itself
    sixteen_bits = ";16" in str(image.tile)
    image.load()  # and close the file
    if sixteen_bits and len(image.getbands()) > 1 and max(high for _, high in image.getextrema()[:3]) < 16:
        raise ImageError(
            f"{what} has colours of 16 bits with no value above 4095, which come out black: scale the images to 8 bits."
        )
    turned = image.getexif().get(PILImage.ExifTags.Base.Orientation) is not None
    return ImageOps.exif_transpose(image) if turned else image


def open_image(stored: PILImage.Image | Mapping | None, what: str = "image", reduction: int = 1) -> PILImage.Image:
    """Decode an image of `datasets` (its `bytes`, or the file at its `path`) to RGB, turned as its EXIF data say.

    Args:
        stored: {"bytes", "path"}, or an image that is decoded already.
        what: how errors and warnings name it, such as "image in row 3".
        reduction: 2, 4 or 8 decodes a JPEG at a half, a quarter or an eighth of its width and height, rounded up.

    Raises:
        ImageError: it is missing, empty, cut off, no image, or so large that Pillow takes it for an attack; its values
            are in no known range.
    """
    what = with_path(stored, what)
    with readable(stored, what):
        image = to_rgb(decode(stored, what, reduction) if isinstance(stored, Mapping) else stored, what)
    if max(image.size) > ELONGATED * min(image.size):
        size = f"{image.width} x {image.height}"
        warn_once("elongated", f"{what} has {size} pixels: a model that crops images sees only the middle of it.")
    return image


@contextmanager
def readable(stored: PILImage.Image | Mapping | None, what: str) -> Iterator[None]:
    """What fails while a stored image is decoded, as an ImageError.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise  # says nothing about the image
    except InputError:
        raise
    except Exception as error:  # whatever a decoder stumbles on
        reason = "it is in no image format" if isinstance(error, UnidentifiedImageError) else first_sentence(error)[:-1]
        raise ImageError(
            f"{what} cannot be read ({'it is missing' if stored is None else reason}): "
            "remove or replace it, or leave out all such images with --on_bad_image skip."
        ) from error


def with_path(stored: PILImage.Image | Mapping | None, what: str) -> str:
    """How errors name an image: what it is, and its path if that is known."""
    path = stored["path"] if isinstance(stored, Mapping) else None
    return f"{what} ({path})" if path else what


_warned: set[str] = set()


def warn_once(kind: str, text: str) -> None:
    if kind not in _warned:
        _warned.add(kind)
        logger.warning(f"{text} (Said once, for the first such image.)")


def check_size(image: PILImage.Image, mask: PILImage.Image, what: str) -> None:
    """Refuse a mask that is not of its image's size.

    Raises:
        InputError: their sizes differ.
    """
    if image.size != mask.size:
        raise InputError(
            f"{what} has {mask.width} x {mask.height} pixels and its image {image.width} x {image.height}, expected "
            "the same: pair each image with its own mask, at full size."
        )


def inspected(rows: Dataset, inspect: Callable[[int], Result], what: str) -> Iterator[tuple[int, Result]]:
    """(row, inspect(row)) in threads and, where there are several processes, of this process's share of the rows."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if _shared() else (0, 1)
    with ThreadPoolExecutor() as pool:
        for start in tqdm(range(0, len(rows), 1000), desc=what, leave=False, disable=len(rows) < 2000):
            share = range(start + rank, min(start + 1000, len(rows)), world)
            yield from zip(share, pool.map(inspect, share), strict=True)


def of_all(found: Result) -> list[Result]:
    """What each process found, by rank; all processes must ask together."""
    everyone = [found]
    if _shared():
        dist.all_gather_object(everyone := [None] * dist.get_world_size(), found)
    return everyone


def _shared() -> bool:
    return dist.is_available() and dist.is_initialized()


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
        sample = stored[row]
        try:
            open_image(sample["image"], f"{what}image in row {sample.get(ROW, row)}")
        except ImageError as error:
            return error

    bad = []
    for row, error in inspected(rows, problem, what):
        if error is not None and not skip:
            raise error
        if error is not None:
            bad.append(row)
    return leave_out(rows, [row for each in of_all(bad) for row in each], what)


def leave_out(rows: Dataset, bad: Sequence[int], what: str) -> tuple[Dataset, int]:
    """The rows without the bad ones, and how many those are.

    Raises:
        InputError: all are bad.
    """
    if not bad:
        return rows, 0
    if len(bad) == len(rows):
        raise InputError(f"{what}none of its {len(rows)} images can be read: check the files.")
    return rows.select(np.delete(np.arange(len(rows)), bad)), len(bad)
