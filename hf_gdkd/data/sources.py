"""Name -> where a data set comes from: the names of its splits, and each split when it is asked for."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import (
    ClassLabel,
    Dataset,
    DatasetBuilder,
    Features,
    Image,
    IterableDataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.data_files import DataFilesDict
from datasets.exceptions import DatasetsError
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as FORMATS
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import resolve_revision
from huggingface_hub.errors import RevisionResolutionError
from PIL import Image as PILImage
from yaml import YAMLError

from ..errors import InputError, first_sentence
from ..hub_client import hub_reason
from .image_folder import SPLITS, find_layout, log_layout, scan

logger = logging.getLogger(__name__)

EMBEDDED = {"digits": "scikit-learn digits", "digit-scenes": "scenes of scikit-learn digits"}  # name -> in words
TABLES = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json"}  # files that may name images beside them
NO_TABLES = ("id2label.json", "palette.json")  # what the classes of masks are called, and their colours
SHARDS = (".parquet", ".arrow", ".tar")  # files that hold images


@dataclass
class Source:
    """A data set that is not read yet.

    `read(split)` returns its rows, `stream(split)` reads them as they are asked for; `folder` is where relative paths
    of images may begin, `revision` the commit on the Hub.
    """

    splits: Sequence[str]
    read: Callable[[str], Dataset]
    stream: Callable[[str], IterableDataset]
    revision: str | None = None
    folder: str | None = None


def open_source(
    name: str, config: str | None = None, revision: str | None = None, *, labels: bool | None = False
) -> Source:
    """Find a data set: `digits`, a folder, or an id on the Hub.

    Args:
        name, config, revision: of the data set.
        labels: whether a folder of images must have class folders; None: they have no meaning.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    if name == "digits":
        return Source(("train", "test"), lambda split: load_digits()[split], _no_stream)
    if name == "digit-scenes":
        raise InputError("digit-scenes has a class for each pixel: use --task semantic-segmentation, or digits.")
    if not os.path.isdir(name) and (name.startswith((".", "/", "~")) or name.count("/") > 1 or name in FORMATS):
        raise InputError(
            f"there is no folder {name}: use an existing folder of images, an id on the Hub, or digits"
            f"{' (this is the name of a format of the library datasets)' if name in FORMATS else ''}."
        )
    asked, unreachable = revision, None
    try:
        if os.path.isdir(name):
            return _of_folder(name, config, labels)
        try:
            revision = resolve_revision(name, repo_type="dataset", revision=asked).resolved
        except RevisionResolutionError as error:  # the cache may hold the data all the same
            unreachable = error
        return _of_library(name, config, revision=revision)
    except InputError:
        raise
    except Exception as error:  # whatever the Hub, a card or a file makes it stumble on
        raise refusal(error, name, asked, unreachable) from error


def refusal(error: Exception, name: str, revision: str | None, unreachable: Exception | None = None) -> InputError:
    """Why a data set cannot be loaded, in a sentence."""
    reason = _reason(error, name) or hub_reason(unreachable or error, name, revision=revision, kind="data set")
    reason = reason or first_sentence(error.__cause__ or error if isinstance(error, DatasetsError) else error)
    return InputError(f"data set {name} cannot be loaded: {reason}")


def _reason(error: Exception, name: str) -> str | None:
    """Why a data set that is there cannot be loaded, and what to do; None when it is something else."""
    text = str(error)
    if "pick one among the available configs" in text:
        return f"use --dataset_config, one of {text[text.index('[') + 1 : text.index(']')]}."
    if "Dataset scripts are no longer supported" in text:
        return (
            "it is a script, which could run any code: use --dataset_revision refs/convert/parquet, where the Hub "
            f"keeps a converted copy of many (see https://huggingface.co/datasets/{name}), or choose another data set."
        )
    if isinstance(error, YAMLError):
        return "the metadata in its README.md is not YAML: use a --dataset_revision where it is, or another data set."
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "errno", None) not in (errno.EACCES, errno.EPERM, errno.EROFS):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return (
            f"{cause.filename or 'a file'} cannot be read or written ({os.strerror(cause.errno)}). Data sets are "
            f"kept in {datasets.config.HF_DATASETS_CACHE}: set HF_HOME to a folder that can be written."
        )
    return None


@cache
def load_digits() -> dict[str, Dataset]:
    """scikit-learn's 1,797 scanned digits, 8 x 8 grey: 1,437 to train, 360 to test, stratified, always the same."""
    features = Features({"image": Image(), "label": ClassLabel(names=[str(i) for i in range(10)])})
    return {
        split: Dataset.from_dict({"image": [PILImage.fromarray(p) for p in pixels], "label": labels}, features)
        for split, (pixels, labels) in digit_arrays().items()
    }


def digit_arrays() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The pixels (N, 8, 8) and labels (N,) of the splits of `digits`."""
    from sklearn import datasets as sklearn_datasets
    from sklearn.model_selection import train_test_split

    digits = sklearn_datasets.load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    rows = train_test_split(np.arange(len(pixels)), test_size=360, stratify=digits.target, random_state=0)
    return {split: (pixels[index], digits.target[index]) for split, index in zip(("train", "test"), rows, strict=True)}


def _no_stream(split: str) -> IterableDataset:
    raise InputError("digits is embedded and cannot be streamed: leave --streaming out.")


# -- folders ---------------------------------------------------------------------------------------------------


def _of_folder(name: str, config: str | None, labels: bool | None) -> Source:
    """A folder of images, of tables, or one that `save_to_disk` wrote."""
    path = os.path.abspath(name)  # which the library never takes for the name of a format
    if os.path.isfile(os.path.join(path, "dataset_dict.json")):
        saved = sorted(each.name for each in Path(path).iterdir() if (each / "state.json").is_file())
        return _of_rows(saved, lambda split: load_from_disk(os.path.join(path, split)), path)
    if os.path.isfile(os.path.join(path, "state.json")):
        return _of_rows(["train"], lambda split: load_from_disk(path), path)
    if config is not None:
        return _of_library(path, config, folder=path)
    root = scan(path)
    others, images = root.other_files(), root.count()
    tables = next((names for suffix in TABLES if (names := _tables(path, suffix))), [])
    if images > sum(others[suffix] for suffix in SHARDS):
        try:
            layout = find_layout(root, name, labels)
        except InputError:
            if not tables:
                raise
        else:
            if layout.classes or not tables:
                log_layout(layout, name)
                return _of_rows(list(layout.splits), layout.read, path)
        return _of_tables(tables, path)
    if others.keys() <= {".zip", ".md", ".txt", "hidden"} and others[".zip"]:
        raise InputError(f"folder {name} holds {others['.zip']} archives and no images: unpack them.")
    return _of_library(path, folder=path)


def _tables(path: str, suffix: str) -> list[str]:
    return sorted(str(file) for file in Path(path).glob(f"*{suffix}") if file.name not in NO_TABLES)


def _of_rows(splits: Sequence[str], read: Callable[[str], Dataset], folder: str) -> Source:
    return Source(
        splits,
        lambda split: read(split).with_format(None),
        lambda split: (rows := read(split).with_format(None)).to_iterable_dataset(max(min(64, len(rows)), 1)),
        folder=folder,
    )


def _of_tables(files: Sequence[str], folder: str) -> Source:
    """Tables beside the images that they name: a file is of the split that its name has as a word, or of train."""
    by_split: dict[str, list[str]] = {}
    for file in files:
        words = [word for word in re.split(r"[^a-z]+", Path(file).stem.lower()) if word in SPLITS]
        by_split.setdefault(words[0] if len(words) == 1 else "train", []).append(file)
    suffix = Path(files[0]).suffix
    options = {"sep": "\t"} if suffix == ".tsv" else {}
    return _of_library(TABLES[suffix], folder=folder, data_files=by_split, **options)


# -- the library -----------------------------------------------------------------------------------------------


def _of_library(
    path: str, config: str | None = None, *, revision: str | None = None, folder: str | None = None, **options: Any
) -> Source:
    """What the library `datasets` reads: a repository on the Hub, tables, archives."""

    def build(**more: Any) -> DatasetBuilder:
        return load_dataset_builder(path, config, revision=revision, **options, **more)

    def read(split: str) -> Dataset:
        """A split alone, in a cache of its own, unless the whole data set is in the cache already."""
        if split in _prepared(builder):
            return builder.as_dataset(split)
        one = build(cache_dir=_cache_of(split))
        if isinstance(one.config.data_files, DataFilesDict):
            one.config.data_files = DataFilesDict({split: dict(_files(one))[split]})
            one.info.splits = None  # what the card says of the others is no longer true
        one.download_and_prepare()
        return one.as_dataset(split)

    try:
        builder = build()
    except Exception:  # perhaps there is no Hub: what was read before is in the caches of its splits
        root, found = _cache_of(""), {}
        for split in os.listdir(root) if folder is None and os.path.isdir(root) else ():
            with suppress(Exception):
                found[split] = build(cache_dir=_cache_of(split))
        if not found:
            raise
        return Source(list(found), lambda split: found[split].as_dataset(split), _no_stream_offline)
    splits = list(_files(builder) or builder.info.splits or ())
    if isinstance(builder, ImageFolder):
        logger.warning(
            f"{path} is a folder of images that the library datasets reads, which may take a class for a split (found: "
            f"{', '.join(splits)}). If that is wrong, download it and use the local folder, without --dataset_config."
        )
    return Source(splits, read, lambda split: build().as_streaming_dataset(split), revision, folder)


def _no_stream_offline(split: str) -> IterableDataset:
    raise InputError("the Hub cannot be reached, so nothing can be streamed: leave --streaming out.")


def _cache_of(split: str) -> str:
    return os.path.join(os.path.expanduser(datasets.config.HF_DATASETS_CACHE), "hf_gdkd", split)


def _prepared(builder: DatasetBuilder) -> Sequence[str]:
    """The splits of a data set that the cache holds as a whole."""
    whole = os.path.isfile(os.path.join(builder.cache_dir, "dataset_info.json"))
    return list(builder.info.splits or ()) if whole else ()


def _files(builder: DatasetBuilder) -> dict[str, object]:
    """The files of every split; none where the library reads its cache alone."""
    files = builder.config.data_files
    return {str(split): some for split, some in files.items()} if isinstance(files, DataFilesDict) else {}
