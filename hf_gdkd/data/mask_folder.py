"""A folder of images and masks in pairs -> its splits, by rules that are logged as they are applied.

    root/images/...             root/masks/...
    root/<split>/images/...     root/<split>/masks/...
    root/images/<split>/...     root/masks/<split>/...

The folders may have other names, those of IMAGES and MASKS. An image and a mask are a pair where their paths below
these folders are the same, apart from the endings of ENDINGS and the suffix.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from datasets import Dataset, Features, Image

from ..errors import InputError
from .image_folder import Folder, scan

logger = logging.getLogger(__name__)

IMAGES = ("images", "image", "imgs", "img", "JPEGImages", "leftImg8bit")
MASKS = ("masks", "mask", "annotations", "annotation", "labels", "label", "SegmentationClass", "gtFine")
SPLITS = {"training": "train", "train": "train", "validation": "validation", "valid": "valid", "val": "val"}
SPLITS |= {"test": "test", "testing": "test"}
ENDINGS = ("_leftImg8bit", "_gtFine_labelIds", "_image", "_img", "_mask", "_masks", "_label", "_labels", "_seg", "_gt")


@dataclass
class Pairs:
    """The (image, mask) paths of every split."""

    splits: Mapping[str, list[tuple[str, str]]]

    def read(self, split: str) -> Dataset:
        images, masks = zip(*self.splits[split], strict=True)
        return Dataset.from_dict(
            {"image": list(images), "mask": list(masks)}, Features({"image": Image(), "mask": Image()})
        )


def find_pairs(name: str) -> Pairs | None:
    """The pairs in a folder; None: it has no folders of images and masks.

    Raises:
        InputError: it has, and no image has a mask, or two have one.
    """
    root = scan(name)
    top, sides = root.holding(), {}
    if (both := _sides(root)) is not None:
        images, masks = (_by_split(side) for side in both)
        sides = {split: (images[split], masks[split]) for split in images if split in masks}
    else:
        sides = {SPLITS[each.lower()]: both for each in top if each.lower() in SPLITS and (both := _sides(top[each]))}
    if not sides:
        return None
    splits = {split: _paired(*both, name, split) for split, both in sides.items()}
    found = ", ".join(f"{split} has {len(pairs)} pairs" for split, pairs in splits.items())
    logger.warning(f"Folder of images and masks {name}: {found}.")
    return Pairs(splits)


def _sides(folder: Folder) -> tuple[Folder, Folder] | None:
    """The folders of the images and of the masks."""
    inside = folder.holding()
    images, masks = ([inside[each] for each in names if each in inside] for names in (IMAGES, MASKS))
    return (images[0], masks[0]) if len(images) == len(masks) == 1 else None


def _by_split(folder: Folder) -> dict[str, Folder]:
    """The folders of the splits; the whole as train where there are none."""
    inside = folder.holding()
    splits = {SPLITS[each.lower()]: inside[each] for each in inside if each.lower() in SPLITS}
    return splits if splits and not folder.images else {"train": folder}


def _paired(images: Folder, masks: Folder, name: str, split: str) -> list[tuple[str, str]]:
    of_images, of_masks = _by_key(images), _by_key(masks)
    if double := [paths for paths in [*of_images.values(), *of_masks.values()] if len(paths) > 1]:
        raise InputError(
            f"folder {name}, split {split}: {double[0][0]} and {double[0][1]} are of one name, so that pairs are not "
            "clear: leave one of them."
        )
    both = sorted(of_images.keys() & of_masks.keys())
    if not both:
        first = next(iter(of_images.values()))[0], next(iter(of_masks.values()))[0]
        raise InputError(
            f"folder {name}, split {split}: no image has a mask of its name (such as {first[0]} and {first[1]}): name "
            "them alike."
        )
    alone = [each for key, each in of_images.items() if key not in of_masks]
    alone += [each for key, each in of_masks.items() if key not in of_images]
    if alone:
        logger.warning(
            f"Folder {name}, split {split}: {len(alone)} files without a partner are left out ({alone[0][0]})."
        )
    return [(of_images[key][0], of_masks[key][0]) for key in both]


def _by_key(folder: Folder) -> dict[str, list[str]]:
    """The files by their path in the folder, without suffix and ending."""
    found: dict[str, list[str]] = {}
    for path in folder.files():
        key = os.path.splitext(os.path.relpath(path, folder.path))[0]
        ending = next((each for each in ENDINGS if key.endswith(each)), "")
        if "_gtFine_" in key and ending != "_gtFine_labelIds":
            continue  # colours, instances and polygons of Cityscapes
        found.setdefault(key.removesuffix(ending), []).append(path)
    return found
