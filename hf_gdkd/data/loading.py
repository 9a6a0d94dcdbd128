"""Name -> data set for image classification: its splits, columns, classes and unreadable images."""

from __future__ import annotations

import os
from dataclasses import dataclass

from datasets import ClassLabel, Dataset, IterableDataset

from ..errors import InputError
from .columns import check_labels, encode_labels, find_columns, image_and_label, kind_of, warn_of_similar_names
from .decoding import check_images
from .selection import numbered
from .sources import Source, open_source, refusal
from .splits import choose_eval_split, divide, read_splits


@dataclass
class Data:
    """A data set: `train` and `eval` with columns `image` and (if labelled) `labels`.

    The column `sample_id` holds each row's number in the split that it comes from. `revision` is the commit on the
    Hub, `bad_images` the number of images that were left out. A streamed `train` is an IterableDataset of undecoded
    images; with `eval_only` it is None. `train_split_rows` are all rows of the split that `train` is selected from.

    With masks (`load_segmentation`) `labels` are images of classes. `reduce_labels` says whether the masks were stored
    with 0 for no class, and `palette` is a colour (red, green, blue) for each class where the data set has some.
    """

    name: str
    train: Dataset | IterableDataset | None
    eval: Dataset
    eval_split: str
    label_names: list[str] | None
    flip: bool = True
    crop_scale: float = 0.08
    revision: str | None = None
    bad_images: int = 0
    train_split_rows: Dataset | None = None
    reduce_labels: bool = False
    palette: list[tuple[int, int, int]] | None = None


def load_data(
    name: str,
    *,
    config: str | None = None,
    train_split: str = "train",
    eval_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    revision: str | None = None,
    train_rows: int | None = None,
    validation_rows: int | None = None,
    seed: int = 42,
    require_labels: bool = False,
    ignore_labels: bool = False,
    on_bad_image: str = "error",
    streaming: bool = False,
    eval_only: bool = False,
) -> Data:
    """A data set by name: `digits`, an id on the Hub, or a local folder (of images, tables, or from `save_to_disk`).

    Without `eval_split` the first of validation, valid, val and test is taken; a data set with a train split only
    has a tenth of it held out. `validation_rows` holds so many rows of the train split out instead. Held-out rows are
    stratified and do not depend on `seed`; `train_rows` trains on so many of the others, stratified, drawn by `seed`.
    Only the splits that are used are read; with `eval_only` that is the one to evaluate on (or to hold rows out of).

    Without labels `label_names` is None, unless `require_labels`; with `ignore_labels` it is always None. An image that
    cannot be read is an error or, with `on_bad_image` "skip", left out and counted. With `streaming` the training split
    is read as training goes on and not checked before; the other is read once, and kept in the cache of `datasets`.

    Raises:
        InputError: no such data set, split or column; fewer rows than asked for; labels that are out of range; an
            unreadable image; `streaming` of `digits`, of a data set with one split, or of labels whose classes have no
            names.
    """
    source = open_source(name, config, revision, labels=None if ignore_labels else require_labels)
    eval_split = choose_eval_split(name, source, train_split, eval_split, validation_rows, eval_only=eval_only)
    stream = None
    if streaming and not eval_only:
        if name != "digits" and eval_split is None:
            raise InputError(
                f"data set {name} has the split {train_split} alone, and a stream is not divided: choose a data set "
                "with another split, or leave --streaming out."
            )
        stream = _stream(name, source, revision, train_split, image_column, label_column, require_labels, ignore_labels)
    unread = eval_split is not None and (eval_only or streaming)
    splits = read_splits(
        name, source, revision, [*([] if unread else [train_split]), *([eval_split] if eval_split else [])]
    )
    image, label = find_columns(name, next(iter(splits.values())), image_column, label_column, require_labels)
    label = None if ignore_labels else label
    splits = {
        split: numbered(image_and_label(name, rows, image, label, source.folder)) for split, rows in splits.items()
    }
    label_names = None
    if label is not None:
        splits = encode_labels(name, splits)
        label_names = next(iter(splits.values())).features["labels"].names
        warn_of_similar_names(name, label_names)
        for split, rows in splits.items():
            check_labels(name, split, rows, len(label_names))
    bad_images = 0
    for split, rows in splits.items():
        splits[split], bad = check_images(rows, f"data set {name}, split {split}: ", skip=on_bad_image == "skip")
        bad_images += bad
    whole = splits.get(train_split)
    train, evaluation, eval_split = divide(name, splits, train_split, eval_split, train_rows, validation_rows, seed)
    train = None if eval_only else stream or train
    tell_name(train, name)
    shape = {"flip": False, "crop_scale": 0.6} if name == "digits" else {}
    return Data(
        name,
        train,
        evaluation,
        eval_split,
        label_names,
        revision=source.revision,
        bad_images=bad_images,
        train_split_rows=whole,
        **shape,
    )


def tell_name(rows: Dataset | IterableDataset | None, name: str) -> None:
    """Have the rows tell what data set they are of: `info.dataset_name`, an id on the Hub, a folder, or `digits`."""
    if rows is not None:
        rows.info.dataset_name = os.path.abspath(name) if os.path.isdir(name) else name


def _stream(
    name: str,
    source: Source,
    revision: str | None,
    split: str,
    image_column: str | None,
    label_column: str | None,
    require_labels: bool,
    ignore_labels: bool,
) -> IterableDataset:
    """A split as a stream of undecoded images."""
    try:
        rows = source.stream(split)
        if rows.features is None:
            rows = rows._resolve_features()
        image, label = find_columns(name, rows, image_column, label_column, require_labels)
        label = None if ignore_labels else label
        if label is not None and not isinstance(feature := rows.features[label], ClassLabel):
            raise InputError(
                f"data set {name} has labels of type {kind_of(feature)}, whose classes are known only when all is read:"
                f" name them in its card (README.md), as class_label of the feature {label}, or leave --streaming out."
            )
        rows = image_and_label(name, rows, image, label, source.folder)
        first = next(iter(rows), None)
    except InputError:
        raise
    except Exception as error:  # whatever the Hub or a file makes it stumble on
        raise refusal(error, name, revision) from error
    if first is None:
        raise InputError(f"data set {name} has no rows in the split {split}: choose another --train_split.")
    return rows
