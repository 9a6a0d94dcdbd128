"""The report of a comparison in Markdown: tables, and sentences on what they show."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..publishing.wording import CLASSIFICATION
from ..training.run_files import JUDGED as METRICS
from .results import (
    CHAPTERS,
    NO_INTERVAL,
    RESULTS_FOLDER,
    VERDICTS,
    Row,
    Section,
    Trial,
    draw,
    mean_and_deviation,
    paired,
    verdict,
    write_csv,
)  # fmt: skip

JUDGED = ("gdkd", "gdkd3")  # the losses that the sentences are about

HOW_TO_READ = """\
- Every loss had the same number of trials for every student, judged by one run each on rows that are no part of the
  test split; a row with one setting only, such as one that finds its weights by itself, was not tuned. What is no
  option of a loss (learning rate, epochs, ...) was not tuned and is the same for all; a row that differs in it has it
  in its setting. The best trial was then trained with every seed, which draws the training rows, their order, the first
  weights and the augmentation. The test split was read once, when all runs had ended.
- *Settings tuned elsewhere* are those that were best on another data set, trained here as they are.
- *Last* is the last epoch. *Best* is the epoch that was best on the held-out rows: it was not chosen by the test split,
  as best epochs in the literature mostly are. Both are {metric} in %, mean ± standard deviation over seeds.
- *To ce* and *to kd* are the mean differences of the last epoch to these rows, with their 95 % interval, paired by
  seed (Student's t, one degree of freedom less than seeds). Where it holds 0, no difference was seen. About one in
  twenty of such intervals misses by chance.
- *ms a step* is the median over seeds of the training time without evaluations, data loading included, with other runs
  beside it. *Extra parameters* are trained beside the student and thrown away. *Peak memory* is what tensors held at
  most in the first steps: both models, optimizer, batch and activations.
"""


def write_report(
    path: Path, sections: Sequence[Section], command: Sequence[str], about: Mapping[str, Any], appendix: str = ""
) -> None:
    """Write the sections into their chapters of a report; a CSV and a picture a section go to `results`.

    `appendix` is the end of the chapter on classification.
    """
    for title in dict.fromkeys(section.chapter for section in sections):
        of_chapter = [section for section in sections if section.chapter == title]
        end = appendix if title == CHAPTERS[CLASSIFICATION] else ""
        _write_chapter_of(path, title, of_chapter, command, about, end)


def _write_chapter_of(
    path: Path, title: str, sections: Sequence[Section], command: Sequence[str], about: Mapping[str, Any], appendix: str
) -> None:
    (path.parent / RESULTS_FOLDER).mkdir(parents=True, exist_ok=True)
    text = [f"Written by `{shlex.join(command)}`: {', '.join(f'{k} {v}' for k, v in about.items())}.\n"]
    text += [HOW_TO_READ.format(metric=METRICS[sections[0].words.judged]), *summary(sections), ""]
    for section in sections:
        write_csv(path.parent / RESULTS_FOLDER / f"{section.name}.csv", section)
        draw(path.parent / RESULTS_FOLDER / f"{section.name}.png", section)
        text.append(as_markdown(section))
    write_chapter(path, title, "\n".join([*text, appendix]))


def write_chapter(path: Path, title: str, text: str) -> None:
    """Write a chapter into a report, in place of the one with its title or at the end; the others stay."""
    report = path.read_text(encoding="utf-8") if path.is_file() else ""
    chapters = {part.split("\n", 1)[0]: part.strip() for part in re.split("(?m)^(?=# )", report) if part.strip()}
    chapters[f"# {title}"] = f"# {title}\n\n{text.strip()}"
    path.write_text("\n\n".join(chapters.values()) + "\n", encoding="utf-8")


def as_markdown(section: Section) -> str:
    """The section of one data set."""
    picture = f"![{section.words.judged_name} against time a step]({RESULTS_FOLDER}/{section.name}.png)"
    lines = [*heading(section), f"\n{picture}"]
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
        trials = [trial for trial in section.trials if trial.student == student]
        lines += ["", *findings(rows), *untuned(rows, trials), "", tuning(trials)]
    lines += carried(section)
    if section.remarks:
        lines += [f"\n### Remarks on {section.name}\n", section.remarks.strip()]
    lines += ["\n<details><summary>Every trial, and the settings that all share</summary>\n"]
    lines += ["| student | loss | setting | held-out rows, % | |", "|---|---|---|---|---|"]
    for student, loss, settings, share, chosen in section.trials:
        score = "diverged" if share is None else f"{100 * share:.2f}"
        lines.append(f"| {student} | {loss} | {shown(settings)} | {score} | {'chosen' if chosen else ''} |")
    shared = yaml.safe_dump(dict(section.settings), sort_keys=False, default_flow_style=None, width=110)
    return "\n".join([*lines, f"\n```yaml\n{shared}```\n</details>\n"])


def heading(section: Section) -> list[str]:
    """What the section is of: the data set, and how good the teacher is on its test split."""
    lines = [f"## {section.name}\n", section.about.strip()]
    if section.teacher:
        size, share = section.teacher["parameters"], 100 * section.teacher[section.words.judged]
        name = METRICS[section.words.judged]
        lines.append(f"\nThe teacher ({size:,} parameters) has {share:.2f} % ({name}) on the test split.")
    return lines


def shown(settings: Mapping[str, Any]) -> str:
    """Settings as a reader wants them."""
    words = {key: " ".join(value) if key == "loss_options" else f"{key} {value}" for key, value in settings.items()}
    return ", ".join(each for key, each in words.items() if key != "loss") or "as it is"


def percent(by_seed: Mapping[int, float]) -> str:
    mean, deviation = mean_and_deviation(by_seed.values())
    return f"{100 * mean:.2f} ± {100 * deviation:.2f}"


def cost(row: Row) -> list[str]:
    """Cells: ms a step, extra parameters, peak memory."""
    ms = "-" if math.isnan(row.ms()) else f"{row.ms():.1f}"
    return [ms, f"{row.extra_parameters:,}", "-" if row.peak_mb is None else f"{row.peak_mb:.1f}"]


def summary(sections: Sequence[Section]) -> list[str]:
    """In how many tables each loss of `JUDGED` is above, not seen to differ from, and below each other row."""
    tables = [section.tuned_here(student) for section in sections for student in section.students()]
    losses = list(dict.fromkeys(loss for rows in tables for loss in rows))
    lines = [
        "## What the tables show\n",
        f"Of {len(tables)} tables (one a data set and student), those where the loss at the left is above / not seen "
        "to differ from / below the one at the top:\n",
        f"| | {' | '.join(losses)} |",
        "|---" * (len(losses) + 1) + "|",
    ]
    for loss in losses:
        if _is_judged(next(rows[loss] for rows in tables if loss in rows)):
            pairs = {other: [(r[loss], r[other]) for r in tables if {loss, other} <= r.keys()] for other in losses}
            counts = {other: Counter(verdict(*pair) for pair in each) for other, each in pairs.items()}
            cells = [
                "-" if other == loss else " / ".join(str(counts[other][word]) for word in VERDICTS) for other in losses
            ]
            lines.append(f"| {loss} | {' | '.join(cells)} |")
    return lines


def tuning(trials: Sequence[Trial]) -> str:
    """A sentence on one student: how much a loss's options matter on the held-out rows, and how much the loss."""
    scores: dict[str, list[float]] = {}
    for trial in trials:
        if trial.score is not None:
            scores.setdefault(trial.loss, []).append(100 * trial.score)
    if not scores:
        return ""
    range_of = {loss: max(values) - min(values) for loss, values in scores.items()}
    widest = max(range_of, key=range_of.get)
    best = sorted((max(values), loss) for loss, values in scores.items())
    low, high = best[0], best[-1]
    diverged = sum(trial.score is None for trial in trials)
    return (
        f"On the held-out rows the trials of one loss lie up to {range_of[widest]:.2f} points apart ({widest}), the "
        f"best of each row {high[0] - low[0]:.2f} ({low[1]} {low[0]:.2f}, {high[1]} {high[0]:.2f})."
        + (f" {diverged} trials diverged." if diverged else "")
    )


def findings(rows: Mapping[str, Row]) -> list[str]:
    """Sentences on one student: the highest row, and how each loss of `JUDGED` stands to every other row."""
    means = {loss: mean_and_deviation(row.last.values())[0] for loss, row in rows.items() if row.last}
    first = max(means, key=means.get)
    close = [loss for loss in rows if loss != first and verdict(rows[first], rows[loss]) == "no difference seen to"]
    to_others = f"; no difference was seen between it and {listed(close)}" if close else ", above all others"
    lines = [f"The highest mean is that of {first}{to_others}."]
    for loss, row in rows.items():
        if _is_judged(row):
            verdicts: dict[str, list[str]] = {word: [] for word in (*VERDICTS, NO_INTERVAL)}
            for other in rows.values():
                if other is not row:
                    verdicts[verdict(row, other)].append(other.loss)
            lines.append(
                f"- {loss}: "
                + "; ".join(f"{word} {listed(names)}" for word, names in verdicts.items() if names or word in VERDICTS)
                + "."
            )
    most = max(len(row.last) for row in rows.values())
    fewer = [f"{loss} ({len(row.last)})" for loss, row in rows.items() if len(row.last) < most]
    said = f"\nOf {most} seeds some are missing, as a run diverged or is not done: {listed(fewer)}."
    return [*lines, said] if fewer else lines


def untuned(rows: Mapping[str, Row], trials: Sequence[Trial]) -> list[str]:
    """How the rows that were not tuned stand to the same loss tuned by hand."""
    tuned = {trial.loss for trial in trials}
    pairs = [(row, rows.get(row.settings.get("loss"))) for row in rows.values() if row.loss not in tuned]
    pairs = [(row, hand) for row, hand in pairs if hand is not None and hand.loss in tuned]
    if not pairs:
        return []
    lines = ["\n| not tuned | tuned by hand | difference | |", "|---|---|---|---|"]
    for row, hand in pairs:
        lines.append(f"| {row.loss} | {hand.loss} | {paired(row.last, hand.last)} | {verdict(row, hand)} it |")
    return lines


def _is_judged(row: Row) -> bool:
    return row.settings.get("loss", row.loss) in JUDGED


def listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def carried(section: Section) -> list[str]:
    """How far settings that were tuned on other data sets carry to this one."""
    rows = [row for row in section.rows if row.tuned_on != section.name]
    if not rows:
        return []
    lines = [
        f"\n### Settings tuned elsewhere, on {section.name}\n",
        "| student | loss | tuned on | setting | seeds | last, % | to the setting tuned here |",
        "|---|---|---|---|---|---|---|",
    ]
    counts = Counter(dict.fromkeys((*VERDICTS, "the same as"), 0))
    for row in rows:
        here = section.tuned_here(row.student)[row.loss]
        same = row.settings == here.settings
        counts["the same as" if same else verdict(row, here)] += 1
        difference = "the same setting" if same else str(paired(row.last, here.last))
        cells = [row.student, row.loss, row.tuned_on, shown(row.settings), str(len(row.last)), percent(row.last)]
        cells.append(difference)
        lines.append(f"| {' | '.join(cells)} |")
    counted = ", ".join(f"{count} {word} it" for word, count in counts.items())
    return [*lines, f"\nOf {len(rows)} settings from elsewhere, beside the one tuned here: {counted}."]
