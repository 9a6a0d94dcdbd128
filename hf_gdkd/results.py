"""The report of a comparison: paired intervals, tables, a CSV, the picture, and sentences on what they show."""

from __future__ import annotations

import csv
import json
import math
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy import stats

from .errors import InputError

FILES = "results"  # the folder of CSV and picture, beside the report
JUDGED = ("gdkd", "gdkd3")  # the losses that the sentences are about

HOW_TO_READ = """\
- Every loss had the same number of trials for every student, judged by one run each on rows that are no part of the
  test split. What is no option of a loss (learning rate, epochs, ...) is the same for all and was not tuned. The best
  trial was then trained with every seed, which draws the training rows, their order, the first weights and the
  augmentation. The test split was read once, when all runs had ended.
- *Last* is the last epoch. *Best* is the epoch that was best on the held-out rows: it was not chosen by the test split,
  as best epochs in the literature mostly are. Both are top-1 accuracy in %, mean ± standard deviation over seeds.
- *To ce* and *to kd* are the mean differences of the last epoch to these rows, with their 95 % interval, paired by
  seed (Student's t, one degree of freedom less than seeds). Where it holds 0, no difference was seen. About one in
  twenty of such intervals misses by chance.
- *ms a step* is the median over seeds of the training time without evaluations, data loading included, with other runs
  beside it. *Extra parameters* are trained beside the student and thrown away. *Peak memory* is what tensors held at
  most in the first steps: both models, optimizer, batch and activations.
"""


@dataclass
class Row:
    """One student, loss and setting: top-1 (share) by seed, `last` epoch and `best`, and what a step costs."""

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
    """A setting that was tried in tuning: top-1 (share) on the held-out rows, None where it diverged."""

    student: str
    loss: str
    settings: Mapping[str, Any]
    top1: float | None
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


def write_report(
    path: Path, sections: Sequence[Section], command: Sequence[str], about: Mapping[str, Any], more: str = ""
) -> None:
    """Write the report, `more` at its end, and, in the folder `results` beside it, a CSV and a picture a section."""
    (path.parent / FILES).mkdir(parents=True, exist_ok=True)
    text = [f"# Results\n\nWritten by `{shlex.join(command)}`: {', '.join(f'{k} {v}' for k, v in about.items())}.\n"]
    text.append(HOW_TO_READ)
    for section in sections:
        write_csv(path.parent / FILES / f"{section.name}.csv", section)
        draw(path.parent / FILES / f"{section.name}.png", section)
        text.append(as_markdown(section))
    path.write_text("\n".join([*text, more]), encoding="utf-8")


def as_markdown(section: Section) -> str:
    """The section of one data set."""
    lines = [f"## {section.name}\n", section.about.strip()]
    if section.teacher:
        size, top1 = section.teacher["parameters"], 100 * section.teacher["top1"]
        lines.append(f"\nThe teacher ({size:,} parameters) has {top1:.2f} % on the test split.")
    lines.append(f"\n![accuracy against time a step]({FILES}/{section.name}.png)")
    for student in section.students():
        rows = section.tuned_here(student)
        lines += [
            f"\n### {section.name}, {student}\n",
            "| loss | setting | last, % | best, % | to ce | to kd | ms a step | extra parameters | peak memory, MB |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in rows.values():
            to = [str(paired(row.last, rows[base].last)) if row.loss != base else "-" for base in ("ce", "kd")]
            cells = [row.loss, shown(row.settings), percent(row.last), percent(row.best), *to, *cost(row)]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *findings(rows)]
    lines += carried(section)
    lines += ["\n<details><summary>Every trial, and the settings that all share</summary>\n"]
    lines += ["| student | loss | setting | held-out rows, % | |", "|---|---|---|---|---|"]
    for student, loss, settings, top1, chosen in section.trials:
        score = "diverged" if top1 is None else f"{100 * top1:.2f}"
        lines.append(f"| {student} | {loss} | {shown(settings)} | {score} | {'chosen' if chosen else ''} |")
    shared = yaml.safe_dump(dict(section.settings), sort_keys=False, default_flow_style=None, width=110)
    return "\n".join([*lines, f"\n```yaml\n{shared}```\n</details>\n"])


def shown(settings: Mapping[str, Any]) -> str:
    """Settings as a reader wants them."""
    return ", ".join(f"{key} {value}" for key, value in settings.items() if key != "loss") or "as it is"


def percent(by_seed: Mapping[int, float]) -> str:
    mean, deviation = mean_and_deviation(by_seed.values())
    return f"{100 * mean:.2f} ± {100 * deviation:.2f}"


def cost(row: Row) -> list[str]:
    """Cells: ms a step, extra parameters, peak memory."""
    return [f"{row.ms():.1f}", f"{row.extra_parameters:,}", "-" if row.peak_mb is None else f"{row.peak_mb:.1f}"]


def findings(rows: Mapping[str, Row]) -> list[str]:
    """Sentences on one student: the highest row, and how each loss of `JUDGED` stands to every other row."""
    means = {loss: mean_and_deviation(row.last.values())[0] for loss, row in rows.items() if row.last}
    first = max(means, key=means.get)
    close = [loss for loss in rows if loss != first and _verdict(rows[first], rows[loss]) == "no difference seen to"]
    to_others = f"; no difference was seen between it and {listed(close)}" if close else ", above all others"
    lines = [f"The highest mean is that of {first}{to_others}."]
    for loss, row in rows.items():
        if row.settings.get("loss", loss) in JUDGED:
            verdicts: dict[str, list[str]] = {"above": [], "no difference seen to": [], "below": []}
            for other in rows.values():
                if other is not row:
                    verdicts[_verdict(row, other)].append(other.loss)
            lines.append(f"- {loss}: " + "; ".join(f"{word} {listed(names)}" for word, names in verdicts.items()) + ".")
    most = max(len(row.last) for row in rows.values())
    diverged = [loss for loss, row in rows.items() if len(row.last) < most]
    return [*lines, f"\nDiverged with some seeds: {listed(diverged)}."] if diverged else lines


def _verdict(row: Row, other: Row) -> str:
    interval = paired(row.last, other.last)
    return "above" if interval.low > 0 else "below" if interval.high < 0 else "no difference seen to"


def listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def carried(section: Section) -> list[str]:
    """How far settings that were tuned on other data sets carry to this one."""
    rows = [row for row in section.rows if row.tuned_on != section.name]
    if not rows:
        return []
    lines = [
        f"\n### Settings tuned elsewhere, on {section.name}\n",
        "| student | loss | tuned on | setting | last, % | to the setting tuned here |",
        "|---|---|---|---|---|---|",
    ]
    counts = {"above": 0, "below": 0, "no difference seen to": 0, "the same as": 0}
    for row in rows:
        here = section.tuned_here(row.student)[row.loss]
        same = row.settings == here.settings
        counts["the same as" if same else _verdict(row, here)] += 1
        difference = "the same setting" if same else str(paired(row.last, here.last))
        cells = [row.student, row.loss, row.tuned_on, shown(row.settings), percent(row.last), difference]
        lines.append(f"| {' | '.join(cells)} |")
    counted = ", ".join(f"{count} {word} it" for word, count in counts.items())
    return [*lines, f"\nOf {len(rows)} settings from elsewhere, beside the one tuned here: {counted}."]


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
    """`settings` and the interval `to_ce` (low, high) of every loss that a report's CSV holds.

    Raises:
        InputError: there is no such CSV, or no such student in it.
    """
    path = report.parent / FILES / f"{dataset}.csv"
    if not path.is_file():
        raise InputError(f"there is no {path}: write the report first, or name it with --report.")
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["student"] == student and line["tuned_on"] == dataset]
    if not lines:
        raise InputError(f"{path} has no student {student}: name one that it has.")
    return {
        line["loss"]: {
            "settings": json.loads(line["settings"]),
            "to_ce": (float(line["to_ce_low"]), float(line["to_ce_high"])),
        }
        for line in lines
    }


def draw(path: Path, section: Section) -> None:
    """Accuracy against training time a step, one panel a student; labels stand in a column at the right."""
    students = section.students()
    losses = dict.fromkeys(row.loss for row in section.rows)
    colors = {loss: colormaps["tab20"](2 * i % 20 + (i > 9)) for i, loss in enumerate(losses)}
    figure = Figure(figsize=(6.5 * len(students), 5), layout="constrained")
    for axes, student in zip(figure.subplots(1, len(students), squeeze=False)[0], students, strict=True):
        rows = [row for row in section.tuned_here(student).values() if row.last]
        rows.sort(key=lambda row: statistics.mean(row.last.values()))
        x = [row.ms() for row in rows]
        y, deviation = zip(*(mean_and_deviation(row.last.values()) for row in rows), strict=True)
        y, deviation = [100 * value for value in y], [0 if math.isnan(value) else 100 * value for value in deviation]
        low, high = min(map(float.__sub__, y, map(float, deviation))), max(map(float.__add__, y, map(float, deviation)))
        places = spread(y, gap=max(high - low, 0.1) / 16)
        right = max(x) + 0.12 * max(max(x) - min(x), 0.05 * max(x))
        for i, row in enumerate(rows):
            color = colors[row.loss]
            axes.errorbar(x[i], y[i], deviation[i], fmt="o", color=color, capsize=2)
            line = {"arrowstyle": "-", "color": color, "linewidth": 0.6}
            axes.annotate(row.loss, (x[i], y[i]), (right, places[i]), va="center", arrowprops=line, fontsize=9)
        axes.set_xlim(right=right + 0.35 * (right - min(x)))
        axes.set(xlabel="ms a training step (median over seeds)", title=student)
        axes.set_ylabel("top-1 of the last epoch, % (mean ± standard deviation)")
        axes.grid(alpha=0.3)
    figure.suptitle(section.name)
    figure.savefig(path, dpi=120)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Ascending values moved apart to at least `gap`, the mean kept."""
    places: list[float] = []
    for value in values:
        places.append(max(value, places[-1] + gap) if places else value)
    shift = statistics.mean(places) - statistics.mean(values)
    return [place - shift for place in places]
