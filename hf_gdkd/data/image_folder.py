"""A folder of images -> its splits and classes, by rules that are logged as they are applied.

    root/<class>/...            every folder of the root is a class, whatever its name, `train` included
    root/<split>/<class>/...    where the folders of the root are called train, validation, valid, val or test

Links are followed, and folders inside a class folder belong to that class. Every file whose suffix Pillow can open is
an image. Everything else is left out and counted.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from ..errors import InputError

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "valid", "val", "test")
LIKE_SPLITS = {*SPLITS, "training", "testing", "dev", "eval", "evaluation"}  # in any case
NO_IMAGES = {"MPEG", "HDF5", "BUFR", "GRIB"}  # Pillow recognises these formats and cannot read them


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of image files that Pillow can open, in lower case, such as `.png` and `.avif`."""
    known = PILImage.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in PILImage.OPEN and kind not in NO_IMAGES)


@dataclass
class Folder:
    """A folder and what is in it: image files, folders and, by suffix, how many other files."""

    path: str
    images: list[str] = field(default_factory=list)
    folders: dict[str, Folder] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)

    def walk(self) -> Iterator[Folder]:
        """This folder and all below it."""
        yield self
        for folder in self.folders.values():
            yield from folder.walk()

    def files(self) -> list[str]:
        """The images in it and below it."""
        return [os.path.join(folder.path, name) for folder in self.walk() for name in folder.images]

    def count(self) -> int:
        return sum(len(folder.images) for folder in self.walk())

    def other_files(self) -> Counter[str]:
        """How many files in it and below it are no images, by suffix."""
        return sum((folder.others for folder in self.walk()), Counter())

    def holding(self) -> dict[str, Folder]:
        """The folders directly in it that hold images, at any depth."""
        return {name: folder for name, folder in self.folders.items() if folder.count()}


def scan(path: str, above: frozenset[str] = frozenset()) -> Folder:
    """What a folder holds; a link to a folder above it, which would have no end, is not followed."""
    found, above = Folder(path), above | {os.path.realpath(path)}
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                found.others["hidden"] += 1
            elif entry.is_dir():
                if entry.is_symlink() and os.path.realpath(entry.path) in above:
                    found.others["link to a folder above it"] += 1
                else:
                    found.folders[entry.name] = scan(entry.path, above)
            elif suffix in image_suffixes():
                found.images.append(entry.name)
            else:
                found.others[suffix or entry.name] += 1
    return found


@dataclass
class Layout:
    """How a folder of images is read: each split's images by class (by None where there are no classes)."""

    splits: dict[str, dict[str | None, list[str]]]
    notes: list[str]

    @property
    def classes(self) -> list[str]:
        return sorted({name for classes in self.splits.values() for name in classes if name is not None})

    def read(self, split: str) -> Dataset:
        """The rows of a split: `image` and, where there are classes, `label`."""
        classes, features = self.splits[split], {"image": Image()}
        columns: dict[str, list] = {"image": [path for paths in classes.values() for path in paths]}
        if names := self.classes:
            features["label"], index = ClassLabel(names=names), {name: i for i, name in enumerate(names)}
            columns["label"] = [index[name] for name, paths in classes.items() for _ in paths]
        return Dataset.from_dict(columns, Features(features))


def find_layout(root: Folder, name: str, labels: bool | None = False) -> Layout:
    """Decide which folders are splits and which are classes.

    Args:
        root: the folder, as `scan` found it.
        name: what the user calls it.
        labels: whether there must be classes; None: take all images, in class folders or not.

    Raises:
        InputError: one class, or none where there must be; folders that can be read as splits and as classes.
    """
    top, left_out = root.holding(), []
    splits = {name: top[name] for name in SPLITS if name in top}
    others = {name: folder for name, folder in top.items() if name not in SPLITS}
    if _are_splits(name, splits, others):
        left_out += [f"the folder {each} ({folder.count()} images)" for each, folder in others.items()]
    else:
        splits = {"train": root}
        _check_classes(name, top)
    classless = not any(folder.holding() for folder in splits.values())
    if classless and labels:
        found = ", ".join(f"{folder.count()} images in {folder.path}" for folder in splits.values())
        raise InputError(
            f"folder {name} has no class folders (found: {found}): use root/<class>/ or root/<split>/<class>/, or "
            "--label_free."
        )
    if labels is None or classless:
        layout = Layout({split: {None: folder.files()} for split, folder in splits.items()}, [])
    else:
        layout = Layout({}, [])
        for split, folder in splits.items():
            classes = folder.holding()
            if classes:
                layout.splits[split] = {label: inside.files() for label, inside in classes.items()}
                if folder.images:
                    left_out.append(f"{_some(folder.images)} outside the class folders of {folder.path}")
            else:
                layout.notes.append(f"{split}/ is ignored: its {folder.count()} images are in no class folders.")
        _compare_classes(layout)
        if len(layout.classes) < 2:
            raise InputError(_one_class(name, splits, layout))
    if root.images and root not in splits.values():
        left_out.append(f"{_some(root.images)} outside the split folders")
    empty = [each for each, folder in root.folders.items() if not folder.count()]
    left_out += [f"{len(empty)} folders without images ({_listed(empty)})"] if empty else []
    if counts := root.other_files():
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        left_out.append(f"{sum(counts.values())} other files ({kinds})")
    layout.notes += [f"Left out: {'; '.join(left_out)}."] if left_out else []
    return layout


def log_layout(layout: Layout, name: str) -> None:
    """Say what was found, and what was left out."""
    parts = [
        f"{split} has {sum(map(len, classes.values()))} images"
        + (f" of {len(classes)} classes" if None not in classes else " without classes")
        for split, classes in layout.splits.items()
    ]
    classes = f" Classes: {_listed(layout.classes)}." if layout.classes else ""
    logger.warning(" ".join([f"Folder of images {name}: {', '.join(parts)}.{classes}", *layout.notes]))


def _are_splits(name: str, splits: Mapping[str, Folder], others: Mapping[str, Folder]) -> bool:
    """Whether the folders with the names of splits are splits, and not classes."""
    if not splits or not others:
        return bool(splits)
    in_folders = [split for split, folder in splits.items() if folder.holding()]
    if len(splits) == 1 and not in_folders:
        return False
    if len(splits) > 1 and in_folders:
        return True
    raise InputError(
        f"folder {name} holds images in {_listed([*splits, *others])}: {_listed(list(splits))} could be a split or a "
        "class. Use the layout <split>/<class>/ or <class>/ alone, and move the other folders elsewhere."
    )


def _check_classes(name: str, classes: Mapping[str, Folder]) -> None:
    if classes and all(each.lower() in LIKE_SPLITS for each in classes):
        raise InputError(
            f"folder {name} holds images in {_listed(list(classes))}, which look like splits but are not "
            f"named as splits: rename them to {', '.join(SPLITS)}."
        )
    for each, folder in classes.items():
        if len(inside := [split for split in folder.holding() if split in SPLITS]) > 1:
            raise InputError(
                f"folder {name} holds splits inside of folders ({each} has {_listed(inside)}): use the layout "
                "<split>/<class>/, or name one of its folders."
            )


def _compare_classes(layout: Layout) -> None:
    """Drop a split that shares no class with train, and note classes that train lacks."""
    trained = set(layout.splits.get("train", ()))
    for split in [split for split in layout.splits if trained and split != "train"]:
        extra = sorted(set(layout.splits[split]) - trained)
        if len(extra) == len(layout.splits[split]):
            del layout.splits[split]
            layout.notes.append(f"{split}/ is ignored: none of its folders ({_listed(extra)}) is a class of train/.")
        elif extra:
            layout.notes.append(f"Warning: {split}/ has classes that train/ lacks: {_listed(extra)}.")


def _one_class(name: str, splits: Mapping[str, Folder], layout: Layout) -> str:
    label = layout.classes[0]
    holding = [folder.folders[label].holding() for folder in splits.values() if label in folder.folders]
    inside = sorted(set().union(*holding))
    more = f", which holds the folders {_listed(inside)}" if inside else ""
    return (
        f"folder {name} has one class folder with images, {label}{more}: expected two or more, as root/<class>/ or "
        f"root/<split>/<class>/. {'Name the folder that holds the classes' if inside else 'Sort the images by class'}, "
        "or use --label_free."
    )


def _some(files: list[str]) -> str:
    return f"{len(files)} image{'s' if len(files) > 1 else ''} ({_listed(files)})"


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
