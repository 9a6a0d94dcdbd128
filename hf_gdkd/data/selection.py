"""Which rows are trained on and which are held out; each keeps its number in the split that it comes from."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

HELD_OUT = 0.1  # of the train split, when the data set has no other split
HELD_OUT_SEED = 42  # held-out rows are the same whatever the seed of the training

ROW = "sample_id"  # the column that holds a row's number in its split


def numbered(rows: Dataset) -> Dataset:
    """The rows with their numbers in a column `sample_id`, which later selections keep."""
    return rows.add_column(ROW, np.arange(len(rows)))


def hold_out(rows: Dataset, size: int, seed: int = HELD_OUT_SEED) -> tuple[Dataset, Dataset]:
    """The rows without `size` of them, and these; drawn at random, stratified where there are labels."""
    labels = column(rows, "labels") if "labels" in rows.column_names else np.zeros(len(rows), np.int64)
    drawn = draw(labels, size, seed)
    return rows.select(np.flatnonzero(~drawn)), rows.select(np.flatnonzero(drawn))


def column(rows: Dataset, name: str) -> np.ndarray:
    """A column of numbers without decoding anything else."""
    return rows.select_columns(name).with_format("numpy")[:][name]


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
