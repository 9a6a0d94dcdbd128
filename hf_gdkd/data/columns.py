"""The columns of a data set that hold its images and its labels, the images as images and the labels as classes."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Image, IterableDataset, Value
from datasets.table import InMemoryTable

from ..errors import InputError
from .image_folder import image_suffixes

logger = logging.getLogger(__name__)

Rows = Dataset | IterableDataset

IMAGE_COLUMNS = ("image", "img")
PHOTO_COLUMNS = ("image", "pixel_values", "img")  # where there are masks too
MASK_COLUMNS = (
    "label",
    "annotation",
    "semantic_segmentation",
    "mask",
    "labels",
    "annotations",
    "masks",
    "segmentation",
)
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
IMAGE_TYPES = "an image column holds encoded files as bytes, {bytes, path} with them, or paths of image files"


def find_columns(
    name: str, rows: Rows, image: str | None, label: str | None, require_labels: bool
) -> tuple[str, str | None]:
    """The columns that hold images and labels (None: no labels)."""
    features = rows.features or {}
    image = _image_column(name, rows, image, IMAGE_COLUMNS, features)
    classes = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    if label is None:
        label = next((c for c in LABEL_COLUMNS if c in features), classes[0] if len(classes) == 1 else None)
    if label not in features and (label is not None or require_labels):
        raise InputError(
            f"data set {name} has no label column {f'{label} ' if label else ''}among its columns {_listed(rows)}: "
            "use --label_column."
        )
    return image, label


def find_mask_columns(name: str, rows: Rows, image: str | None, mask: str | None) -> tuple[str, str]:
    """The columns that hold images and masks."""
    image = _image_column(
        name, rows, image, PHOTO_COLUMNS, [c for c in rows.features if c not in (mask, *MASK_COLUMNS)]
    )
    others = [column for column in rows.features if column != image]
    return image, _image_column(name, rows, mask, MASK_COLUMNS, others, "mask", "label_column")


def _image_column(
    name: str,
    rows: Rows,
    asked: str | None,
    names: Sequence[str],
    columns: Collection[str],
    what: str = "image",
    flag: str = "image_column",
) -> str:
    """The column that is asked for; else the first of `names`, or the only one, of the `columns` that hold images."""
    features = rows.features or {}
    if asked is not None and asked not in features:
        raise InputError(
            f"data set {name} has no {what} column {asked} among its columns {_listed(rows)}: choose another --{flag}."
        )
    if asked is None:
        images = [column for column in columns if isinstance(features[column], Image)]
        images = images or [column for column in columns if _can_hold_images(rows, column)]
        asked = next((c for c in names if c in images), images[0] if len(images) == 1 else None)
        if asked is None:
            several = f"several {what} columns ({', '.join(images)})" if images else f"no {what} column"
            raise InputError(
                f"data set {name} has {several} among its columns {_listed(rows)}: use --{flag} ({IMAGE_TYPES})."
            )
    if not _can_hold_images(rows, asked):
        article = "an" if what == "image" else "a"
        raise InputError(
            f"data set {name} has {article} {what} column {asked} of type {kind_of(features[asked])}"
            f"{_example(rows, asked)}: {IMAGE_TYPES}. Choose another --{flag}, or convert it."
        )
    return asked


def _listed(rows: Rows) -> str:
    return ", ".join(f"{column} ({kind_of(feature)})" for column, feature in (rows.features or {}).items())


def kind_of(feature: object) -> str:
    if isinstance(feature, Mapping):
        return f"{{{', '.join(feature)}}}"
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def _can_hold_images(rows: Rows, column: str) -> bool:
    """Whether a column is of images, or can be cast to images: bytes, {bytes, path}, or text that looks like paths."""
    feature = rows.features[column]
    if isinstance(feature, Value) and "string" in feature.dtype:
        return os.path.splitext(_first(rows, column) or "")[1].lower() in image_suffixes()
    if isinstance(feature, Mapping):
        return {"bytes", "path"} >= set(feature) and "binary" in kind_of(feature.get("bytes"))
    return isinstance(feature, Image) or (isinstance(feature, Value) and "binary" in feature.dtype)


def _first(rows: Rows, column: str) -> object:
    """The first value of a column that is not empty, of the first hundred rows."""
    values = (row[column] for row in rows.select_columns(column).take(100))
    return next((value for value in values if value), None)


def _example(rows: Rows, column: str) -> str:
    first = _first(rows, column) if kind_of(rows.features[column]) == "string" else None
    return f" (such as {first[:30]!r})" if first else ""


def image_and_label(name: str, rows: Rows, image: str, label: str | None, folder: str | None = None) -> Rows:
    """The two columns as `image`, of type Image (undecoded in a stream), and `labels`.

    Paths of images may be relative to `folder`.

    Raises:
        InputError: the first path leads to no file.
    """
    rows = absolute_paths(name, rows, image, folder)
    kind = Image(decode=isinstance(rows, Dataset))
    if rows.features[image] != kind:
        rows = rows.cast_column(image, kind)
    rows = rows.select_columns([image] if label is None else [image, label])
    names = {image: "image"} if label is None else {image: "image", label: "labels"}
    return rows.rename_columns({old: new for old, new in names.items() if old != new})


def absolute_paths(name: str, rows: Rows, column: str, folder: str | None) -> Rows:
    """Paths of images with the folder before them, or with the only folder in it that holds the first of them.

    A column that holds no paths stays as it is.

    Raises:
        InputError: the first path leads to no file.
    """
    if not kind_of(rows.features[column]).endswith("string"):
        return rows
    first = str(_first(rows, column))
    if "://" in first or os.path.isfile(first):
        return rows
    inside = [entry.path for entry in os.scandir(folder) if entry.is_dir()] if folder else []
    bases = [base for base in [folder, *inside] if base and os.path.isfile(os.path.join(base, first))]
    if not bases or (len(bases) > 1 and bases[0] != folder):
        where = f" in {folder} or in one of its folders" if folder else ""
        what = f"{first!r} is in several folders of {folder}" if bases else f"{first!r} is no file{where}"
        raise InputError(
            f"data set {name} has paths of images in the column {column}, and {what}: use absolute paths"
            f"{', or paths relative to the folder' if folder else ''}."
        )
    if isinstance(rows, IterableDataset):
        raise InputError(
            f"data set {name} has relative paths of images in the column {column}, which cannot be streamed: use "
            "absolute paths, or leave --streaming out."
        )
    table = rows.with_format("arrow")[:]
    place, paths = table.column_names.index(column), table[column].to_pylist()
    paths = pa.array([path and os.path.join(bases[0], path) for path in paths], table[column].type)
    return Dataset(InMemoryTable(table.set_column(place, table.field(place), paths)), rows.info, rows.split)


def encode_labels(name: str, splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Labels that are text or whole numbers become classes: the values of all splits together, sorted."""
    feature = next(iter(splits.values())).features["labels"]
    if isinstance(feature, ClassLabel):
        return dict(splits)
    dtype = feature.dtype if isinstance(feature, Value) else ""
    if "string" not in dtype and "int" not in dtype and dtype != "bool":
        raise InputError(
            f"data set {name} has labels of type {kind_of(feature)}, expected one class, text or whole number an "
            "image: use --label_column."
        )
    labels = {split: _labels(rows) for split, rows in splits.items()}
    for split, column in labels.items():
        bad = pc.less(column, 0).fill_null(True) if "int" in dtype else pc.is_null(column)
        _check_rows(name, split, column, bad, "no classes")
    values = sorted({value for column in labels.values() for value in pc.unique(column).to_pylist()})
    classes = ClassLabel(names=[str(value) for value in values])
    indices = {split: pc.index_in(column, pa.array(values, column.type)) for split, column in labels.items()}
    return {
        split: rows.remove_columns("labels").add_column("labels", indices[split].to_numpy(), feature=classes)
        for split, rows in splits.items()
    }


def check_labels(name: str, split: str, rows: Dataset, num_labels: int) -> None:
    """Refuse labels that are missing or are no class."""
    labels = _labels(rows)
    outside = pc.or_(pc.less(labels, 0), pc.greater_equal(labels, num_labels))
    _check_rows(name, split, labels, outside.fill_null(True), f"outside 0 to {num_labels - 1}")


def _labels(rows: Dataset) -> pa.ChunkedArray:
    return rows.select_columns("labels").with_format("arrow")[:]["labels"]


def _check_rows(name: str, split: str, labels: pa.ChunkedArray, bad: pa.ChunkedArray, what: str) -> None:
    if count := pc.sum(bad).as_py():
        first = pc.index(bad, True).as_py()
        raise InputError(
            f"data set {name}, split {split}: {count} labels are {what}, the first {labels[first]} in row {first}: "
            "choose a labelled split or correct the labels."
        )


def warn_of_similar_names(name: str, label_names: Sequence[str]) -> None:
    """Warn of classes whose names differ in case or white space alone, which are often one class misspelt."""
    alike: dict[str, list[str]] = {}
    for label in label_names:
        key = " ".join(unicodedata.normalize("NFKC", label).casefold().replace("_", " ").split())
        alike.setdefault(key, []).append(label)
    if groups := [labels for labels in alike.values() if len(labels) > 1]:
        shown = "; ".join(", ".join(map(repr, labels)) for labels in groups[:5])
        logger.warning(
            f"Data set {name} has classes whose names differ in case or white space alone ({shown}): they are trained "
            "as different classes."
        )
