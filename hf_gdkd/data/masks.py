"""Masks as they are stored -> the class of each pixel, 255 where it has none; what is no mask is one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image as PILImage

from ..errors import InputError
from .decoding import decode, readable, with_path
from .selection import ROW

IGNORE = 255  # in a mask: no class, left out of loss and metrics
LOSSY = {"JPEG", "MPO"}
FEW = 5  # values that an error names


def open_mask(stored: PILImage.Image | Mapping | None, what: str = "mask") -> PILImage.Image:
    """A stored mask in the mode that it has on disk: L, P, 1, I, I;16 or RGB.

    Raises:
        ImageError: it cannot be read.
        InputError: it is a JPEG, or has a transparency that varies: its values are not what was drawn.
    """
    what = with_path(stored, what)
    with readable(stored, what):
        mask = decode(stored, what) if isinstance(stored, Mapping) else stored
        mask.load()
    if mask.format in LOSSY:
        raise InputError(
            f"{what} is a JPEG, which blurs its values, expected ids or colours as they were drawn: use the PNG "
            "masks that it was made from."
        )
    if mask.mode in ("RGBA", "LA"):
        low, high = mask.getchannel("A").getextrema()
        if low != high:
            raise InputError(f"{what} is transparent in parts, expected ids or colours: save it without transparency.")
        mask = mask.convert(mask.mode[:-1])
    if mask.mode[0] not in "LP1IFR" or mask.mode in ("LAB", "PA"):
        raise InputError(
            f"{what} has the mode {mask.mode}, expected L, P, I, I;16 or RGB: save it as PNG in one of them."
        )
    return mask


def ids(mask: PILImage.Image, what: str = "mask") -> np.ndarray | None:
    """The ids (H, W), whole numbers, that a mask stores in one channel or in three equal ones; None: it has colours."""
    values = np.asarray(mask)
    if values.ndim == 3:
        equal = (values[..., 0] == values[..., 1]).all() and (values[..., 0] == values[..., 2]).all()
        return values[..., 0] if equal else None
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        if not (values == np.round(values)).all():
            raise InputError(
                f"{what} has values that are not whole numbers, expected ids: save it before it is resized."
            )
        return values.astype(np.int64)
    return values


def colours(mask: PILImage.Image) -> np.ndarray:
    """The colours (H, W) of a mask as numbers 0xRRGGBB."""
    channels = np.asarray(mask.convert("RGB")).astype(np.int32)
    return (channels[..., 0] << 16) | (channels[..., 1] << 8) | channels[..., 2]


def as_number(colour: tuple[int, int, int]) -> int:
    """(red, green, blue) as 0xRRGGBB."""
    red, green, blue = colour
    return (red << 16) | (green << 8) | blue


@dataclass(frozen=True)
class MaskReader:
    """Reads masks as classes, a whole number a pixel: what every stored value means is in a table.

    It is applied to a batch of a data set, as `rows.with_transform(reader)`: the column `labels` then holds images of
    mode L whose values are classes, and 255 where there is none.

    Args:
        table: {stored value: class or 255}; the values are ids, or colours as 0xRRGGBB.
        in_colour: whether the values are colours.

    Raises:
        InputError: a mask has a value that the table lacks.

    Examples:
        >>> from PIL import Image
        >>> reader = MaskReader({0: 255, 1: 0, 2: 1})  # reduced labels: 0 is no class, and the others are one less
        >>> mask = Image.frombytes("L", (3, 1), bytes([0, 1, 2]))
        >>> list(reader.read(mask).tobytes())
        [255, 0, 1]
    """

    table: Mapping[int, int]
    in_colour: bool = False

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        if "labels" not in batch:
            return batch
        numbers = batch.get(ROW, range(len(batch["labels"])))
        masks = [self.read(mask, f"mask in row {row}") for mask, row in zip(batch["labels"], numbers, strict=True)]
        return {**batch, "labels": masks}

    def read(self, stored: PILImage.Image | Mapping | None, what: str = "mask") -> PILImage.Image:
        """The classes of a mask, as an image of mode L."""
        mask = open_mask(stored, what)
        values = colours(mask) if self.in_colour else ids(mask, what)
        if values is None:
            raise InputError(f"{what} has colours, where the others hold ids: save all masks in one way.")
        if values.dtype == np.uint8:
            classes = self._of_bytes[values]
        else:
            known, their_classes = self._sorted
            place = np.searchsorted(known, values).clip(max=len(known) - 1)
            classes = np.where(known[place] == values, their_classes[place], -1)
        if classes.min() < 0:
            raise InputError(unknown(values[classes < 0], self.table, what, in_colour=self.in_colour))
        return PILImage.fromarray(classes.astype(np.uint8))

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        known = sorted(self.table)
        return np.array(known, np.int64), np.array([self.table[value] for value in known], np.int16)

    @cached_property
    def _of_bytes(self) -> np.ndarray:
        return np.array([self.table.get(value, -1) for value in range(256)], np.int16)


def unknown(values: Any, table: Mapping[int, int], what: str, *, in_colour: bool = False) -> str:
    """Why values that the table lacks are refused, in a sentence."""
    found = np.unique(np.asarray(values)).tolist()
    listed = ", ".join(map(shown if in_colour else str, found[:FEW])) + (", ..." if found[FEW:] else "")
    blurred = len(found) > max(len(table), 8)
    hint = " (so many look like a mask that was resized with interpolation, or saved as JPEG)" if blurred else ""
    if in_colour:
        return (
            f"{what} has {len(found)} colours that no class has, {listed}{hint}: name every colour in palette.json, as "
            "{class: [red, green, blue]}, beside the data or with --palette; those called ignore have no class."
        )
    last = max(value for value in table if value != IGNORE)
    reduced = ", or use --reduce_labels true if 0 means no class" if found == [last + 1] else ""
    return (
        f"{what} has ids outside the label space, {listed}{hint}, expected 0 to {last}, and 255 for none: correct the "
        f"masks, or name all ids in id2label.json, as {{id: class}}, beside the data or with --id2label{reduced}."
    )


def shown(colour: int) -> str:
    return f"({colour >> 16}, {colour >> 8 & 255}, {colour & 255})"
