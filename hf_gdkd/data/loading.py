"""Name -> data set for image classification: its splits, columns, classes and unreadable images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    load_dataset,
    load_dataset_builder,
)
from datasets.exceptions import DatasetsError
from huggingface_hub import resolve_revision
from huggingface_hub.errors import RevisionResolutionError
from PIL import Image as PILImage
from yaml import YAMLError

from ..errors import InputError, first_sentence
from ..hub_client import hub_reason
from .columns import check_labels, encode_labels, find_columns, image_and_label, kind_of
from .decoding import check_images

EVAL_SPLITS = ("validation", "valid", "val", "test")
HELD_OUT = 0.1  # of the train split, when the data set has no other split


@dataclass
class Data:
    """A data set for image classification: `train` and `eval` with columns `image` and (if labelled) `labels`.

    `revision` is its commit on the Hub, `bad_images` the number of images that were left out. A streamed `train` is an
    IterableDataset of undecoded images.
    """

    name: str
    train: Dataset | IterableDataset
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
    train_rows: int | None = None,
    validation_rows: int | None = None,
    seed: int = 42,
    require_labels: bool = False,
    ignore_labels: bool = False,
    on_bad_image: str = "error",
    streaming: bool = False,
) -> Data:
    """A data set by name: `digits`, an id on the Hub, or a local folder (imagefolder, parquet, webdataset).

    Without `eval_split` the first of validation, valid, val and test is taken; a data set with a train split only
    has a tenth of it held out, stratified. `validation_rows` holds so many rows of the train split out instead, and
    `train_rows` trains on so many of the others; `seed` draws both, stratified. Without labels `label_names` is None,
    unless `require_labels`; with `ignore_labels` it is always None. An image that cannot be read is an error or, with
    `on_bad_image` "skip", left out and counted. With `streaming` the training split is read as training goes on and not
    checked before; the other is read once, and kept in the cache of `datasets`.

    Raises:
        InputError: no such data set, split or column; fewer rows than asked for; labels that are out of range; an
            unreadable image; `streaming` of `digits`, of a data set with one split, or of labels whose classes have no
            names.
    """
    if streaming and name == "digits":
        raise InputError("digits is embedded and cannot be streamed: leave --streaming out.")
    splits, revision = (load_digits(), None) if name == "digits" else _load(name, config, revision, streaming)
    if validation_rows is None:
        eval_split = eval_split or next((s for s in EVAL_SPLITS if s in splits and s != train_split), None)
    for split in (train_split, eval_split or train_split):
        if split not in splits:
            raise InputError(f"data set {name} has no split {split!r}: choose one of {', '.join(splits)}.")
    image, label = find_columns(name, splits[train_split], image_column, label_column, require_labels)
    label = None if ignore_labels else label
    if streaming:
        stream, evaluation = _streamed(name, config, revision, splits, train_split, eval_split, image, label)
        splits = DatasetDict({eval_split: evaluation})
    else:
        wanted = dict.fromkeys((train_split, eval_split or train_split))
        splits = DatasetDict({split: image_and_label(splits[split], image, label) for split in wanted})
    label_names = None
    if label is not None:
        splits = encode_labels(name, splits)
        label_names = next(iter(splits.values())).features["labels"].names
        for split, rows in splits.items():
            check_labels(name, split, rows, len(label_names))
    bad_images = 0
    for split, rows in splits.items():
        splits[split], bad = check_images(rows, f"data set {name}, split {split}: ", skip=on_bad_image == "skip")
        bad_images += bad
    train = stream if streaming else splits[train_split]
    if not streaming and len(train) < (train_rows or 1) + (validation_rows or 0):
        raise InputError(
            f"data set {name}, split {train_split}, has {len(train)} rows, too few for train_rows {train_rows} and "
            f"validation_rows {validation_rows}: ask for fewer."
        )
    if validation_rows is not None:
        eval_split = f"{train_split} ({validation_rows} rows held out)"
        train, evaluation = _hold_out(train, validation_rows, seed)
    elif eval_split is None:
        eval_split, (train, evaluation) = f"{train_split} (held-out tenth)", _hold_out(train, HELD_OUT, seed)
    else:
        evaluation = splits[eval_split]
    if train_rows is not None and train_rows < len(train):
        _, train = _hold_out(train, train_rows, seed)
    shape = {"flip": False, "crop_scale": 0.6} if name == "digits" else {}
    return Data(name, train, evaluation, eval_split, label_names, revision=revision, bad_images=bad_images, **shape)


def _load(
    name: str, config: str | None, revision: str | None, streaming: bool
) -> tuple[dict[str, Dataset | IterableDataset], str | None]:
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
        return load_dataset(name, config, revision=revision, streaming=streaming), revision
    except Exception as error:  # whatever the Hub, a card or a file makes it stumble on
        raise _refusal(error, name, asked, unreachable) from error


def _refusal(error: Exception, name: str, revision: str | None, unreachable: Exception | None = None) -> InputError:
    reason = _reason(error, name) or hub_reason(unreachable or error, name, revision=revision, kind="data set")
    reason = reason or first_sentence(error.__cause__ or error if isinstance(error, DatasetsError) else error)
    return InputError(f"data set {name} cannot be loaded: {reason}")


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


def _streamed(
    name: str,
    config: str | None,
    revision: str | None,
    splits: dict[str, IterableDataset],
    train_split: str,
    eval_split: str | None,
    image: str,
    label: str | None,
) -> tuple[IterableDataset, Dataset]:
    """The training split as a stream of undecoded images, and the other as it is kept on disk."""
    if eval_split is None:
        raise InputError(
            f"data set {name} has the split {train_split} alone, and a stream is not divided: choose a data set with "
            "another split, or leave --streaming out."
        )
    if label is not None and not isinstance(feature := splits[train_split].features[label], ClassLabel):
        raise InputError(
            f"data set {name} has labels of type {kind_of(feature)}, whose classes nobody knows before all is read: "
            f"name them in its card (README.md), as class_label of the feature {label}, or leave --streaming out."
        )
    try:
        stream = image_and_label(splits[train_split].cast_column(image, Image(decode=False)), image, label)
        features = Features(stream.features | {"image": Image()})
        version = load_dataset_builder(name, config, revision=revision).cache_dir
        options = {"name": name, "config": config, "revision": revision, "split": eval_split}
        options |= {"image": image, "label": label, "version": version}
        evaluation, first = Dataset.from_generator(_rows_of, features, gen_kwargs=options), next(iter(stream), None)
    except Exception as error:  # whatever the Hub or a file makes it stumble on
        raise _refusal(error, name, revision) from error
    if first is None:
        raise InputError(f"data set {name} has no rows in the split {train_split}: choose another --train_split.")
    return stream, evaluation


def _rows_of(
    name: str, config: str | None, revision: str | None, split: str, image: str, label: str | None, version: str
) -> Iterator[dict[str, object]]:
    """The undecoded rows of a split; the `version` of the data is part of the name that `datasets` keeps them under."""
    rows = load_dataset(name, config, revision=revision, split=split, streaming=True)
    yield from image_and_label(rows.cast_column(image, Image(decode=False)), image, label)


def _hold_out(rows: Dataset, size: int | float, seed: int) -> tuple[Dataset, Dataset]:
    """The rows without `size` of them (a number or a share), and these; stratified unless a class is too small."""
    try:
        parts = rows.train_test_split(size, seed=seed, stratify_by_column="labels")
    except ValueError:  # no labels, a class of one image, or more classes than rows in a part
        parts = rows.train_test_split(size, seed=seed)
    return parts["train"], parts["test"]
