"""Name -> data set for semantic segmentation: its splits, images, masks as classes, and what the classes are called."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image
from huggingface_hub import DatasetCard, constants, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from ..errors import InputError, first_sentence
from .columns import absolute_paths, find_mask_columns
from .decoding import CHECKED_ROWS, ImageError, check_size, inspected, leave_out, of_all, open_image
from .digit_scenes import DIGIT_CLASSES, digit_scenes
from .label_space import Colour, ModelClasses, Stored, find_label_space
from .loading import Data, tell_name
from .mask_folder import find_pairs
from .masks import as_number, ids, open_mask
from .selection import ROW, numbered
from .sources import Source, open_source, refusal
from .splits import choose_eval_split, divide, read_splits

MOST_COLOURS = 2**16  # of one mask; a photograph has more


def load_segmentation(
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
    on_bad_image: str = "error",
    eval_only: bool = False,
    models: Sequence[ModelClasses] = (),
    reduce_labels: bool | None = None,
    id2label: str | None = None,
    palette: str | None = None,
) -> Data:
    """A data set with masks by name: `digit-scenes`, an id on the Hub, or a local folder.

    A folder holds pairs of files (images/ and masks/, by split or not), tables, parquet, or what `save_to_disk` wrote.
    Splits and rows are chosen as by `load_data`; `label_column` is that of the masks. In the rows that are returned,
    `labels` is an image of mode L, read when it is asked for, whose values are classes, and 255 where there is none.

    Args:
        models: the classes of the teachers and, where it segments already, of the student. The first gives the classes
            their names where the data set does not.
        reduce_labels: whether 0 means no class and the other ids are one less; None: where a model of these classes or
            the ids themselves say so.
        id2label: file with {id: class}; None: id2label.json in the data set, or `id2label` in its card.
        palette: file with {class: [red, green, blue]}; None: palette.json in the data set.

    Raises:
        InputError: no such data set, split or column; an image or mask that cannot be read; a mask of another size
            than its image; a value without a class; classes without names; no pixel with a class.
    """
    source, written = _open(name, config, revision)
    eval_split = choose_eval_split(name, source, train_split, eval_split, validation_rows, eval_only=eval_only)
    wanted = [eval_split] if eval_only and eval_split else [train_split, *([eval_split] if eval_split else [])]
    splits = read_splits(name, source, revision, wanted)
    image, mask = find_mask_columns(name, next(iter(splits.values())), image_column, label_column)
    splits = {split: numbered(_pairs(name, rows, image, mask, source.folder)) for split, rows in splits.items()}
    stored, bad_images = {}, 0
    for split, rows in splits.items():
        what = f"data set {name}, split {split}: "
        splits[split], stored[split], bad = _check(rows, what, skip=on_bad_image == "skip")
        bad_images += bad
    named = _id2label(name, source, id2label) if id2label or written is None else written
    space = find_label_space(name, stored, named, _palette(name, source, palette), models, reduce_labels)
    splits = {split: rows.with_transform(space.reader) for split, rows in splits.items()}
    train, evaluation, eval_split = divide(name, splits, train_split, eval_split, train_rows, validation_rows, seed)
    tell_name(train, name)
    return Data(
        name,
        None if eval_only else train,
        evaluation,
        eval_split,
        space.names,
        flip=name != "digit-scenes",
        revision=source.revision,
        bad_images=bad_images,
        train_split_rows=splits.get(train_split),
        reduce_labels=space.reduce_labels,
        palette=space.colours,
    )


def _open(name: str, config: str | None, revision: str | None) -> tuple[Source, dict[int, str] | None]:
    """Where a data set comes from, and the classes of its ids if it is embedded."""
    if name == "digit-scenes":
        return Source(("train", "test"), digit_scenes, _no_stream), dict(enumerate(DIGIT_CLASSES))
    if os.path.isdir(name) and config is None and (pairs := find_pairs(name)):
        return Source(list(pairs.splits), pairs.read, _no_stream, folder=os.path.abspath(name)), None
    return open_source(name, config, revision, labels=None), None


def _no_stream(split: str) -> Any:
    raise InputError("masks cannot be streamed: leave --streaming out.")


def _pairs(name: str, rows: Dataset, image: str, mask: str, folder: str | None) -> Dataset:
    """The two columns as `image` and `labels`, both of type Image; masks undecoded."""
    for column in (image, mask):
        rows = absolute_paths(name, rows, column, folder)
    rows = rows.select_columns([image, mask]).cast_column(image, Image()).cast_column(mask, Image(decode=False))
    names = {image: "image", mask: "labels"}
    return rows.rename_columns({old: new for old, new in names.items() if old != new})


def _check(rows: Dataset, what: str, *, skip: bool) -> tuple[Dataset, Stored, int]:
    """The rows whose images and masks can be read, the values of these masks, and how many other rows there are.

    Of a data set of over 20,000 rows so many are looked at, spread evenly, unless bad ones are skipped.

    Raises:
        InputError: one cannot be read, unless `skip`; a mask is not of its image's size.
    """
    undecoded = rows.cast_column("image", Image(decode=False))
    looked_at = np.arange(len(rows))
    if len(rows) > CHECKED_ROWS and not skip:
        looked_at = np.unique(np.linspace(0, len(rows) - 1, CHECKED_ROWS).round().astype(int))

    def look(index: int) -> Stored | ImageError:
        sample = undecoded[int(looked_at[index])]
        try:
            return _values(sample, what)
        except ImageError as error:
            return error

    bad, found, stored = [], Stored(), Stored()
    for index, one in inspected(looked_at, look, what):
        if not isinstance(one, ImageError):
            found.add(one)
        elif not skip:
            raise one
        else:
            bad.append(int(looked_at[index]))
    for some in of_all(found):
        stored.add(some)
    rows, left_out = leave_out(rows, [row for each in of_all(bad) for row in each], what)
    return rows, stored, left_out


def _values(sample: Mapping[str, Any], what: str) -> Stored:
    """What the mask of one row holds."""
    row = sample[ROW]
    image = open_image(sample["image"], f"{what}image in row {row}")
    place = row, what = row, f"{what}mask in row {row}"
    mask = open_mask(sample["labels"], what)
    check_size(image, mask, what)
    values = ids(mask, what)
    if values is None:
        counted = mask.getcolors(MOST_COLOURS)
        if counted is None:
            raise InputError(
                f"{what} has over {MOST_COLOURS} colours, expected one a class: it is a picture, or a mask that was "
                "resized with interpolation; use masks as they were drawn, or another --label_column."
            )
        return Stored(colours={as_number(colour): place for _, colour in counted})
    found = np.flatnonzero(np.bincount(values.ravel())) if values.dtype == np.uint8 else np.unique(values)
    stored = Stored(ids={int(value): place for value in found})
    if mask.mode == "P":
        colours = np.array(mask.getpalette("RGB"), np.int64).reshape(-1, 3)
        stored.colours_of = {
            value: {as_number(colours[value].tolist())} for value in stored.ids if value < len(colours)
        }
    return stored


# -- what is written beside the data ---------------------------------------------------------------------------


def _id2label(name: str, source: Source, file: str | None) -> dict[int, str] | None:
    """{id: class} as a file, id2label.json or the card says."""
    path = file or _beside(name, source, "id2label.json")
    what = path or f"the card of data set {name}"
    written = _json(path) if path else _card(name, source).get("id2label")
    if written is None:
        return None
    try:
        pairs = {int(i): str(each) for i, each in dict(written).items()}
    except (TypeError, ValueError) as error:
        raise InputError(f'{what} does not hold {{id: class}}, such as {{"0": "road"}}: correct it.') from error
    if len({*pairs.values()}) < len(pairs):
        raise InputError(f"{what} gives one name to two classes: correct it.")
    return pairs


def _palette(name: str, source: Source, file: str | None) -> dict[str, Colour] | None:
    """{class: colour} as a file or palette.json says."""
    path = file or _beside(name, source, "palette.json")
    if path is None:
        return None
    try:
        palette = {str(each): tuple(map(int, colour)) for each, colour in dict(_json(path)).items()}
        valid = all(len(colour) == 3 and min(colour) >= 0 and max(colour) <= 255 for colour in palette.values())
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise InputError(f"{path} does not hold {{class: [red, green, blue]}} with values from 0 to 255: correct it.")
    return palette


def _beside(name: str, source: Source, file: str) -> str | None:
    """The local path of a file in the data set's folder or repository; None: it has none."""
    if source.folder is not None:
        path = os.path.join(source.folder, file)
        return path if os.path.isfile(path) else None
    if source.revision is None:  # embedded, or read from the cache of datasets alone
        return None
    try:
        return hf_hub_download(name, file, repo_type="dataset", revision=source.revision)
    except Exception as error:  # whatever the Hub makes it stumble on
        if isinstance(error, RemoteEntryNotFoundError) or constants.is_offline_mode():  # then the cache decides
            return None
        raise refusal(error, name, source.revision) from error


def _card(name: str, source: Source) -> Mapping[str, Any]:
    path = _beside(name, source, "README.md")
    return DatasetCard.load(path, ignore_metadata_errors=True).data.to_dict() if path else {}


def _json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {first_sentence(error)}") from error
