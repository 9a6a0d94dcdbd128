"""What a comparison found: its rows, their paired intervals, the CSV and the picture."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from ..errors import InputError
from ..publishing.wording import CLASSIFICATION, SEGMENTATION, WORDINGS, Wording

CHAPTERS = {CLASSIFICATION: "Results", SEGMENTATION: "Results: semantic segmentation"}  # of a report, by the task
RESULTS_FOLDER = "results"  # of the CSV files and pictures, beside the report


@dataclass
class Row:
    """One student, loss and setting: what is judged (a share) by seed, `last` epoch and `best`, and the cost."""

    dataset: str
    student: str
    loss: str
    tuned_on: str
    settings: Mapping[str, Any]
    last: Mapping[int, float]
    best: Mapping[int, float]
    ms_per_step: Sequence[float]
    extra_parameters: int
    peak_mb: float | None

    def ms(self) -> float:
        """The median over seeds; NaN where all diverged."""
        return statistics.median(self.ms_per_step) if self.ms_per_step else math.nan


class Trial(NamedTuple):
    """A setting that was tried in tuning: what is judged (a share) on the held-out rows, None where it diverged."""

    student: str
    loss: str
    settings: Mapping[str, Any]
    score: float | None
    chosen: bool


@dataclass
class Section:
    """What the report says of one data set."""

    name: str
    about: str
    rows: list[Row]
    trials: list[Trial]
    teacher: Mapping[str, float] | None
    settings: Mapping[str, Any]
    remarks: str = ""
    words: Wording = WORDINGS[CLASSIFICATION]
    chapter: str = CHAPTERS[CLASSIFICATION]

    def students(self) -> list[str]:
        return list(dict.fromkeys(row.student for row in self.rows))

    def tuned_here(self, student: str) -> dict[str, Row]:
        """The rows of the table, by loss."""
        return {row.loss: row for row in self.rows if row.student == student and row.tuned_on == self.name}


class Interval(NamedTuple):
    """A mean difference and its 95 % interval; NaN where there are fewer than two seeds."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:+.2f} [{100 * self.low:+.2f}, {100 * self.high:+.2f}]"


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Interval:
    """one - other over the seeds that both have: the mean and its 95 % interval (t, n - 1 degrees of freedom)."""
    differences = [one[seed] - other[seed] for seed in one if seed in other]
    if len(differences) < 2:
        return Interval(math.nan, math.nan, math.nan)
    mean, n = statistics.mean(differences), len(differences)
    half = stats.t.ppf(0.975, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def mean_and_deviation(values: Iterable[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN where there are too few values."""
    values = list(values)
    return (
        statistics.mean(values) if values else math.nan,
        statistics.stdev(values) if len(values) > 1 else math.nan,
    )


VERDICTS = ("above", "no difference seen to", "below")  # what a paired interval says
NO_INTERVAL = "not compared with"  # fewer than two seeds that both have


def verdict(row: Row, other: Row) -> str:
    """How a row stands to another: one of `VERDICTS`, or `NO_INTERVAL`."""
    interval = paired(row.last, other.last)
    if math.isnan(interval.low):
        return NO_INTERVAL
    return "above" if interval.low > 0 else "below" if interval.high < 0 else "no difference seen to"


def write_csv(path: Path, section: Section) -> None:
    """One line a row of the tables; accuracies and differences are shares, `settings` and seeds are JSON."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = None
        for row in section.rows:
            line = {name: getattr(row, name) for name in ("dataset", "student", "loss", "tuned_on")}
            line |= {"settings": json.dumps(dict(row.settings))}
            for epoch in ("last", "best"):
                line[f"{epoch}_mean"], line[f"{epoch}_sd"] = mean_and_deviation(getattr(row, epoch).values())
            for base in ("ce", "kd"):
                interval = paired(row.last, section.tuned_here(row.student)[base].last)
                line |= {f"to_{base}": interval.mean, f"to_{base}_low": interval.low, f"to_{base}_high": interval.high}
            line |= {"ms_per_step": row.ms(), "extra_parameters": row.extra_parameters, "peak_mb": row.peak_mb}
            line |= {epoch: json.dumps(dict(getattr(row, epoch))) for epoch in ("last", "best")}
            if writer is None:
                writer = csv.DictWriter(file, list(line))
                writer.writeheader()
            writer.writerow(line)


def read_reported(report: Path, dataset: str, student: str) -> dict[str, dict[str, Any]]:
    """Read the `settings` and the interval `to_ce` (low, high) of every loss from a report's CSV.

    Raises:
        InputError: there is no such CSV, it is not complete, or it has no such student.
    """
    path = report.parent / RESULTS_FOLDER / f"{dataset}.csv"
    if not path.is_file():
        raise InputError(f"{path} does not exist: write the report first, or name it with --report.")
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if missing := {"loss", "student", "tuned_on", "settings", "to_ce_low", "to_ce_high"} - set(
            rows.fieldnames or ()
        ):
            raise InputError(f"{path} has no column {min(missing)}: write the report again.")
        every = [row for row in rows if row["tuned_on"] == dataset]
    lines = [row for row in every if row["student"] == student]
    if not lines:
        students = ", ".join(dict.fromkeys(row["student"] for row in every)) or "none"
        raise InputError(f"{path} has no student {student}: it has {students}.")
    return {
        line["loss"]: {
            "settings": json.loads(line["settings"]),
            "to_ce": (float(line["to_ce_low"]), float(line["to_ce_high"])),
        }
        for line in lines
    }


def draw(path: Path, section: Section) -> None:
    """Accuracy against training time a step, one panel a student; where time was not measured, row by row."""
    students = section.students()
    losses = dict.fromkeys(row.loss for row in section.rows)
    colors = {loss: colormaps["tab20"](2 * i % 20 + (i > 9)) for i, loss in enumerate(losses)}
    size = (7.5 * len(students), max(5, 0.3 * len(losses)))
    figure = Figure(figsize=size, layout="constrained")
    label = f"{section.words.judged_name} of the last epoch, % (mean ± standard deviation)"
    for axes, student in zip(figure.subplots(1, len(students), squeeze=False)[0], students, strict=True):
        rows = [row for row in section.tuned_here(student).values() if row.last]
        rows.sort(key=lambda row: statistics.mean(row.last.values()))
        y, deviation = zip(*(mean_and_deviation(row.last.values()) for row in rows), strict=True)
        y, deviation = [100 * value for value in y], [0 if math.isnan(value) else 100 * value for value in deviation]
        own = [colors[row.loss] for row in rows]
        if any(math.isnan(row.ms()) for row in rows):
            for i, color in enumerate(own):
                axes.errorbar(y[i], i, xerr=deviation[i], fmt="o", color=color, capsize=2)
            axes.set_yticks(range(len(rows)), [row.loss for row in rows])
            axes.set_xlabel(label)
        else:
            _draw_against_time(axes, rows, y, deviation, own)
            axes.set_ylabel(label)
        axes.set_title(student)
        axes.grid(alpha=0.3)
    figure.suptitle(section.name)
    figure.savefig(path, dpi=120)


def _draw_against_time(
    axes: Axes, rows: Sequence[Row], y: Sequence[float], deviation: Sequence[float], colors: Sequence[Any]
) -> None:
    """Points, ascending, whose labels stand in a column at the right."""
    x = [row.ms() for row in rows]
    low, high = min(map(float.__sub__, y, map(float, deviation))), max(map(float.__add__, y, map(float, deviation)))
    places = spread(y, gap=max(high - low, 0.1) / 16)
    right = max(x) + 0.12 * max(max(x) - min(x), 0.05 * max(x))
    for i, (row, color) in enumerate(zip(rows, colors, strict=True)):
        axes.errorbar(x[i], y[i], deviation[i], fmt="o", color=color, capsize=2)
        line = {"arrowstyle": "-", "color": color, "linewidth": 0.6}
        axes.annotate(row.loss, (x[i], y[i]), (right, places[i]), va="center", arrowprops=line, fontsize=9)
    axes.set_xlim(right=right + 0.35 * (right - min(x)))
    axes.set_xlabel("ms a training step (median over seeds)")


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Ascending values moved apart to at least `gap`, the mean kept."""
    places: list[float] = []
    for value in values:
        places.append(max(value, places[-1] + gap) if places else value)
    shift = statistics.mean(places) - statistics.mean(values)
    return [place - shift for place in places]
