"""The splits of a data set: which is evaluated on, reading them, and rows held out where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from datasets import Dataset

from ..errors import InputError
from .selection import hold_out
from .sources import Source, refusal

EVAL_SPLITS = ("validation", "valid", "val", "test")


def choose_eval_split(
    name: str,
    source: Source,
    train_split: str,
    eval_split: str | None,
    validation_rows: int | None,
    *,
    eval_only: bool = False,
) -> str | None:
    """The split to evaluate on; None: rows of the training split are held out.

    Raises:
        InputError: there is no such split, or none to train on.
    """
    if validation_rows is None:
        eval_split = eval_split or next((s for s in EVAL_SPLITS if s in source.splits and s != train_split), None)
    else:
        eval_split = None
    for split in (train_split, eval_split or train_split):
        if split not in source.splits and not (eval_only and split != eval_split is not None):
            raise InputError(f"data set {name} has no split {split!r}: choose one of {', '.join(source.splits)}.")
    return eval_split


def read_splits(name: str, source: Source, revision: str | None, splits: Sequence[str]) -> dict[str, Dataset]:
    """The rows of the splits, as they are stored.

    Raises:
        InputError: one cannot be read, or is empty.
    """
    read = {}
    for split in dict.fromkeys(splits):
        try:
            read[split] = source.read(split)
        except Exception as error:  # whatever the Hub or a file makes it stumble on
            if "corresponds to no data" not in str(error):
                raise refusal(error, name, revision) from error
        if not read.get(split):
            raise InputError(f"data set {name}, split {split}, is empty: choose another split.")
    return read


def divide(
    name: str,
    splits: Mapping[str, Dataset],
    train_split: str,
    eval_split: str | None,
    train_rows: int | None,
    validation_rows: int | None,
    seed: int,
) -> tuple[Dataset | None, Dataset | None, str]:
    """The rows to train on, those to evaluate on, and what the latter are called.

    Without `eval_split` rows of the training split are held out: `validation_rows`, or a tenth.

    Raises:
        InputError: fewer rows than asked for.
    """
    train, evaluation = splits.get(train_split), splits.get(eval_split)
    if train is None:
        return None, evaluation, eval_split
    held_out = 0 if eval_split else -(-len(train) // 10) if validation_rows is None else validation_rows
    if len(train) < (train_rows or 1) + held_out:
        raise InputError(
            f"data set {name}, split {train_split}, has {len(train)} rows, too few for "
            f"{f'train_rows {train_rows}' if train_rows else 'one to train on'} and {held_out} to evaluate on: ask "
            "for fewer, or use a data set with more."
        )
    if held_out or train_rows is not None:
        train, drawn = hold_out(train, held_out, train_rows, seed)
        evaluation = drawn if evaluation is None else evaluation
    if eval_split is None:
        eval_split = f"{train_split} ({'held-out tenth' if validation_rows is None else f'{held_out} rows held out'})"
    return train, evaluation, eval_split
