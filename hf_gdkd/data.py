"""Name -> data set for image classification: its splits, columns, classes and unreadable images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch.distributed as dist
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import resolve_revision
from huggingface_hub.errors import RevisionResolutionError
from PIL import Image as PILImage
from tqdm.auto import tqdm
from yaml import YAMLError

from .connection import hub_reason
from .errors import InputError, first_sentence
from .images import ImageError, Opened

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
EVAL_SPLITS = ("validation", "valid", "val", "test")
HELD_OUT = 0.1  # of the train split, when the data set has no other split
CHECKED_ROWS = 20_000  # images decoded before training, unless bad ones are skipped: then it is all of them


@dataclass
class Data:
    """A data set for image classification: `train` and `eval` with columns `image` and (if labelled) `labels`.

    `revision` is its commit on the Hub, `bad_images` the number of images that were left out.
    """

    name: str
    train: Dataset
    eval: Dataset
    eval_split: str
    label_names: list[str] | None
    flip: bool = True
    crop_scale: float = 0.08
    revision: str | None = None
    bad_images: int = 0


def load_digits() -> DatasetDict:
    """scikit-learn's 1,797 scanned digits, 8 x 8 grey: 1,437 to train, 360 to test, stratified, always the same."""
    from sklearn import datasets as sklearn_datasets
    from sklearn.model_selection import train_test_split

    digits = sklearn_datasets.load_digits()
    features = Features({"image": Image(), "label": ClassLabel(names=[str(i) for i in range(10)])})
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    rows = train_test_split(np.arange(len(pixels)), test_size=360, stratify=digits.target, random_state=0)
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"image": [PILImage.fromarray(p) for p in pixels[index]], "label": digits.target[index]},
                features,
            )
            for split, index in zip(("train", "test"), rows, strict=True)
        }
    )


def load_data(
    name: str,
    *,
    config: str | None = None,
    train_split: str = "train",
    eval_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    revision: str | None = None,
    seed: int = 42,
    require_labels: bool = False,
    ignore_labels: bool = False,
    on_bad_image: str = "error",
) -> Data:
    """A data set by name: `digits`, an id on the Hub, or a local folder (imagefolder, parquet).

    Without `eval_split` the first of validation, valid, val and test is taken; a data set with a train split only
    has a tenth of it held out, stratified. Without labels `label_names` is None, unless `require_labels`; with
    `ignore_labels` it is always None. An image that cannot be read is an error or, with `on_bad_image` "skip", left
    out and counted.

    Raises:
        InputError: no such data set, split or column; labels that are out of range; an unreadable image.
    """
    splits, revision = (load_digits(), None) if name == "digits" else _load(name, config, revision)
    eval_split = eval_split or next((s for s in EVAL_SPLITS if s in splits and s != train_split), None)
    for split in (train_split, eval_split or train_split):
        if split not in splits:
            raise InputError(f"data set {name} has no split {split!r}: choose one of {', '.join(splits)}.")
    image, label = _find_columns(name, splits[train_split], image_column, label_column, require_labels)
    label = None if ignore_labels else label
    splits = DatasetDict({split: _rename(splits[split], image, label) for split in (train_split, eval_split) if split})
    label_names = None
    if label is not None:
        splits = _encode_labels(name, splits)
        label_names = splits[train_split].features["labels"].names
        for split, rows in splits.items():
            _check_labels(name, split, rows, len(label_names))
    bad_images = 0
    for split, rows in splits.items():
        splits[split], bad = check_images(rows, f"data set {name}, split {split}: ", skip=on_bad_image == "skip")
        bad_images += bad
    train = splits[train_split]
    if eval_split is None:
        eval_split, (train, evaluation) = f"{train_split} (held-out tenth)", _hold_out(train, seed)
    else:
        evaluation = splits[eval_split]
    shape = {"flip": False, "crop_scale": 0.6} if name == "digits" else {}
    return Data(name, train, evaluation, eval_split, label_names, revision=revision, bad_images=bad_images, **shape)


def _load(name: str, config: str | None, revision: str | None) -> tuple[DatasetDict, str | None]:
    """The splits of a data set on the Hub or in a folder, and its commit."""
    if not os.path.isdir(name) and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise InputError(f"no folder {name}: give an existing folder of images, an id on the Hub, or digits.")
    asked, unreachable = revision, None
    try:
        if not os.path.isdir(name):
            try:
                revision = resolve_revision(name, repo_type="dataset", revision=asked).resolved
            except RevisionResolutionError as error:  # the cache may hold the data all the same
                unreachable = error
        return load_dataset(name, config, revision=revision), revision
    except Exception as error:  # whatever the Hub, a card or a file makes it stumble on
        reason = _reason(error, name) or hub_reason(unreachable or error, name, revision=asked, kind="data set")
        reason = reason or first_sentence(error.__cause__ or error if isinstance(error, DatasetsError) else error)
        raise InputError(f"data set {name} cannot be loaded: {reason}") from error


def _reason(error: Exception, name: str) -> str | None:
    """Why a data set that is there cannot be loaded, and what to do; None when it is something else."""
    text = str(error)
    if "pick one among the available configs" in text:
        return f"give --dataset_config, one of {text[text.index('[') + 1 : text.index(']')]}."
    if "Dataset scripts are no longer supported" in text:
        return (
            "it is a script, which could run any code: give --dataset_revision refs/convert/parquet, where the Hub "
            f"keeps a converted copy of many (see https://huggingface.co/datasets/{name}), or choose another data set."
        )
    if isinstance(error, YAMLError):
        return "the metadata in its README.md is no YAML: give a --dataset_revision where it is, or another data set."
    return None


def _hold_out(rows: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Nine tenths to train and a tenth to evaluate, stratified unless a class is too small for that."""
    try:
        halves = rows.train_test_split(HELD_OUT, seed=seed, stratify_by_column="labels")
    except ValueError:  # no labels, a class of one image, or more classes than a tenth of the rows
        halves = rows.train_test_split(HELD_OUT, seed=seed)
    return halves["train"], halves["test"]


def _find_columns(
    name: str, rows: Dataset, image: str | None, label: str | None, require_labels: bool
) -> tuple[str, str | None]:
    """The columns that hold images and labels (None: no labels)."""
    listed = ", ".join(f"{column} ({_kind(feature)})" for column, feature in rows.features.items())
    images = [column for column, feature in rows.features.items() if isinstance(feature, Image)]
    if image is None:
        image = next((c for c in IMAGE_COLUMNS if c in images), images[0] if len(images) == 1 else None)
    if image not in images:
        raise InputError(
            f"data set {name} has no image column {f'{image} ' if image else ''}among its columns {listed}: "
            "give --image_column."
        )
    classes = [column for column, feature in rows.features.items() if isinstance(feature, ClassLabel)]
    if label is None:
        label = next((c for c in LABEL_COLUMNS if c in rows.features), classes[0] if len(classes) == 1 else None)
    if label not in rows.features and (label is not None or require_labels):
        raise InputError(
            f"data set {name} has no label column {f'{label} ' if label else ''}among its columns {listed}: "
            "give --label_column."
        )
    return image, label


def _kind(feature: object) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def _rename(rows: Dataset, image: str, label: str | None) -> Dataset:
    rows = rows.select_columns([image] if label is None else [image, label])
    return rows.rename_columns({image: "image"} if label is None else {image: "image", label: "labels"})


def _encode_labels(name: str, splits: DatasetDict) -> DatasetDict:
    """Labels that are text or whole numbers become classes: the values of all splits together, sorted."""
    feature = next(iter(splits.values())).features["labels"]
    if isinstance(feature, ClassLabel):
        return splits
    dtype = feature.dtype if isinstance(feature, Value) else ""
    if "string" not in dtype and "int" not in dtype and dtype != "bool":
        raise InputError(
            f"data set {name} has labels of type {_kind(feature)}, expected one class, text or whole number an image: "
            "give --label_column."
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


def _check_labels(name: str, split: str, rows: Dataset, num_labels: int) -> None:
    labels = rows.select_columns("labels").with_format("arrow")[:]["labels"].to_pylist()
    bad = [v is None or not 0 <= v < num_labels for v in labels]
    _check_rows(name, split, labels, bad, f"outside 0 to {num_labels - 1}")


def _check_rows(name: str, split: str, labels: Sequence[object], bad: Sequence[bool], what: str) -> None:
    if any(bad):
        raise InputError(
            f"data set {name}, split {split}: {sum(bad)} labels are {what}, the first {labels[bad.index(True)]} "
            f"in row {bad.index(True)}: choose a labelled split or mend the labels."
        )


def check_images(rows: Dataset, what: str, *, skip: bool = False) -> tuple[Dataset, int]:
    """The rows whose images can be read, and the number of those whose images cannot.

    Every image is decoded, in threads and, where there are several processes, by each process a share of them. Unless
    bad ones are skipped, a data set of over 20,000 rows is not searched: they are errors as they are read.

    Raises:
        InputError: an image that cannot be read, with its row, unless `skip`; no image that can.
    """
    if len(rows) > CHECKED_ROWS and not skip:
        return rows, 0

    opened = Opened(rows, what)

    def problem(row: int) -> ImageError | None:
        try:
            opened[row]
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
