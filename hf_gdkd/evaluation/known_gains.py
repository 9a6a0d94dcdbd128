"""What losses gained in this project's comparisons (RESULTS.md), on the case that is most like another."""

from __future__ import annotations

import csv
import math
from importlib.resources import files
from typing import NamedTuple

from ..training.auto_table import CNN, TRANSFORMER

ALIKE = 4  # times as many classes, or as few, at most


class Case(NamedTuple):
    """A data set of the comparisons, as far as others can be like it."""

    name: str
    classes: int
    images: int  # of the training
    maps: bool = False  # whether each pixel has a class


CASES = (
    Case("fashion-mnist", 10, 6000),
    Case("glyphs", 62, 6200),
    Case("fashion-scenes", 11, 300, maps=True),
)
STUDENTS = {"cnn": CNN, "vit": TRANSFORMER, "scene-student": CNN}


class Gain(NamedTuple):
    """By how much the metric (a share) of a student was above that without distillation, and above plain KD's.

    Each is a mean over seeds and its 95 % interval (low, high).
    """

    student: str
    loss: str
    seeds: int
    to_ce: tuple[float, float, float]
    to_kd: tuple[float, float, float]


def similar_case(classes: int, *, maps: bool = False) -> Case | None:
    """The case of the same task whose number of classes is nearest; None if all have far more, or far fewer.

    >>> similar_case(100).name, similar_case(1000)
    ('glyphs', None)
    """
    distance = {case: abs(math.log(case.classes / classes)) for case in CASES if case.maps == maps}
    nearest = min(distance, key=distance.get)
    return nearest if distance[nearest] <= math.log(ALIKE) else None


def known_gains(case: Case, student: str | None = None) -> list[Gain]:
    """What was measured in a case, the largest gains first; of one kind of student, if it is known."""
    with (files("hf_gdkd.evaluation") / "gains.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == case.name]
    gains = [
        Gain(
            STUDENTS[row["student"]],
            row["loss"],
            int(row["seeds"]),
            *(tuple(float(row[f"to_{base}{end}"]) for end in ("", "_low", "_high")) for base in ("ce", "kd")),
        )
        for row in rows
    ]
    return sorted((x for x in gains if student in (None, x.student)), key=lambda x: (x.student, -x.to_ce[0]))
