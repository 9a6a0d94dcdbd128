"""Which rows are trained on and which are held out; each keeps its number in the split that it comes from."""

from __future__ import annotations

import numpy as np
from datasets import Dataset, Image

HELD_OUT_SEED = 42  # held-out rows are the same whatever the seed of the training

ROW = "sample_id"  # the column that holds a row's number in its split


def numbered(rows: Dataset) -> Dataset:
    """The rows with their numbers in a column `sample_id`, which later selections keep."""
    return rows.add_column(ROW, np.arange(len(rows)))


def hold_out(rows: Dataset, size: int, train_rows: int | None = None, seed: int = 0) -> tuple[Dataset, Dataset]:
    """The rows to train on and `size` others, drawn at random, stratified where there are labels of whole images.

    `seed` draws the `train_rows` (None: all) from those that are not held out, and these do not depend on it.
    """
    labels = np.zeros(len(rows), np.int64)
    if "labels" in rows.column_names and not isinstance(rows.features["labels"], Image):
        labels = rows.select_columns("labels").with_format("arrow")[:]["labels"].to_numpy()
    held_out = draw(labels, size, HELD_OUT_SEED)
    rest = np.flatnonzero(~held_out)
    if train_rows is not None and train_rows < len(rest):
        rest = rest[draw(labels[rest], train_rows, seed)]
    return rows.select(rest), rows.select(np.flatnonzero(held_out))


def draw(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """A mask (N,) of `size` rows: from each class its share, rounded; where few are drawn, not the last of a class.

    Args:
        labels: classes (N,), whole numbers from 0.
        size: rows to draw, 0 to N.
        seed: what the draw depends on, beside labels and size.
    """
    random = np.random.default_rng(seed)
    counts = np.bincount(labels)
    share = counts * (size / max(len(labels), 1))
    quota = np.floor(share).astype(np.int64)
    # What rounding down left goes to the largest remainders, at random among equals.
    takes_last = (quota + 1 >= counts) & (2 * size < len(labels))
    order = np.lexsort((random.random(len(counts)), quota - share, takes_last))
    order = order[counts[order] > quota[order]]
    quota[order[: size - quota.sum()]] += 1
    shuffled = random.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    drawn = np.zeros(len(labels), bool)
    drawn[by_class[rank < np.repeat(quota, counts)]] = True
    return drawn
