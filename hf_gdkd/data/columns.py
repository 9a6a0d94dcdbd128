"""The columns of a data set that hold its images and its labels, and the labels as classes."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import ClassLabel, Dataset, DatasetDict, Image, IterableDataset, Value

from ..errors import InputError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")


def find_columns(
    name: str, rows: Dataset, image: str | None, label: str | None, require_labels: bool
) -> tuple[str, str | None]:
    """The columns that hold images and labels (None: no labels)."""
    features = rows.features or {}
    listed = ", ".join(f"{column} ({kind_of(feature)})" for column, feature in features.items())
    images = [column for column, feature in features.items() if isinstance(feature, Image)]
    if image is None:
        image = next((c for c in IMAGE_COLUMNS if c in images), images[0] if len(images) == 1 else None)
    if image not in images:
        raise InputError(
            f"data set {name} has no image column {f'{image} ' if image else ''}among its columns {listed}: "
            "give --image_column."
        )
    classes = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    if label is None:
        label = next((c for c in LABEL_COLUMNS if c in features), classes[0] if len(classes) == 1 else None)
    if label not in features and (label is not None or require_labels):
        raise InputError(
            f"data set {name} has no label column {f'{label} ' if label else ''}among its columns {listed}: "
            "give --label_column."
        )
    return image, label


def kind_of(feature: object) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def image_and_label(rows: Dataset | IterableDataset, image: str, label: str | None) -> Dataset | IterableDataset:
    rows = rows.select_columns([image] if label is None else [image, label])
    names = {image: "image"} if label is None else {image: "image", label: "labels"}
    return rows.rename_columns({old: new for old, new in names.items() if old != new})


def encode_labels(name: str, splits: DatasetDict) -> DatasetDict:
    """Labels that are text or whole numbers become classes: the values of all splits together, sorted."""
    feature = next(iter(splits.values())).features["labels"]
    if isinstance(feature, ClassLabel):
        return splits
    dtype = feature.dtype if isinstance(feature, Value) else ""
    if "string" not in dtype and "int" not in dtype and dtype != "bool":
        raise InputError(
            f"data set {name} has labels of type {kind_of(feature)}, expected one class, text or whole number an "
            "image: give --label_column."
        )
    values = set()
    for split, rows in splits.items():
        labels = rows["labels"][:]
        _check_rows(name, split, labels, [v is None or ("int" in dtype and v < 0) for v in labels], "no classes")
        values |= set(labels)
    values = sorted(values)
    classes, index = ClassLabel(names=[str(v) for v in values]), {v: i for i, v in enumerate(values)}
    return DatasetDict(
        {
            split: rows.remove_columns("labels").add_column(
                "labels", [index[v] for v in rows["labels"]], feature=classes
            )
            for split, rows in splits.items()
        }
    )


def check_labels(name: str, split: str, rows: Dataset, num_labels: int) -> None:
    labels = rows.select_columns("labels").with_format("arrow")[:]["labels"].to_pylist()
    bad = [v is None or not 0 <= v < num_labels for v in labels]
    _check_rows(name, split, labels, bad, f"outside 0 to {num_labels - 1}")


def _check_rows(name: str, split: str, labels: Sequence[object], bad: Sequence[bool], what: str) -> None:
    if any(bad):
        raise InputError(
            f"data set {name}, split {split}: {sum(bad)} labels are {what}, the first {labels[bad.index(True)]} "
            f"in row {bad.index(True)}: choose a labelled split or mend the labels."
        )
