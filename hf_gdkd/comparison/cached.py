"""The chapter of the report that sets a teacher's cached logits beside the live teacher."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .results import NO_INTERVAL, RESULTS_FOLDER, VERDICTS, Row, Section, paired, verdict, write_csv
from .tables import heading, listed, percent, write_chapter

TITLE = "The teacher's cache"
COSTS = {"ce": 1.0, "live": 1.91, "recorded": 1.94, "read": 1.05}  # of a step, in steps of ce

HOW_TO_READ = f"""\
- Rows with *views* read the teacher's logits from a cache that holds so many crops of each image, shown in turn, one an
  epoch; the others have a live teacher and a new crop in every epoch.
- *Time* is counted, not measured, in epochs of ce: as measured on this student and teacher with one thread, an epoch with
  a live teacher costs {COSTS["live"]:.2f}, one that records {COSTS["recorded"]:.2f}, and one that reads {COSTS["read"]:.2f}. A row of the *same time* has as many epochs as
  fit into the time of the live teacher's. *Recorded before*: by another student or run, so every epoch reads.
- Nothing was tuned: the weights are those that were best for this student and loss with a live teacher, in half as many
  epochs. *Last* is the top-1 accuracy of the last epoch on the test split in %, mean ± standard deviation over seeds; *to live*
  and *to ce* are mean differences with their 95 % interval, paired by seed.
"""  # noqa: E501


def write_cached_chapter(
    path: Path, sections: Sequence[Section], command: Sequence[str], about: Mapping[str, Any]
) -> None:
    """Write the chapter into the report, and a CSV a section into the folder `results` beside it."""
    (path.parent / RESULTS_FOLDER).mkdir(parents=True, exist_ok=True)
    text = [f"Written by `{shlex.join(command)}`: {', '.join(f'{k} {v}' for k, v in about.items())}.\n", HOW_TO_READ]
    for section in sections:
        write_csv(path.parent / RESULTS_FOLDER / f"{section.name}.csv", section)
        text.append(as_markdown(section))
    write_chapter(path, TITLE, "\n".join(text))


def as_markdown(section: Section) -> str:
    """The section of one data set: a table a student, and how the rows with a cache stand to the live teacher."""
    lines = heading(section)
    for student in section.students():
        rows = section.tuned_here(student)
        lines += [
            f"\n### {section.name}, {student}\n",
            "| row | views | epochs | time | last, % | to live | to ce |",
            "|---|---|---|---|---|---|---|",
        ]
        verdicts: dict[str, dict[str, list[str]]] = {}
        for row in rows.values():
            live, number = rows[loss_of(row)], epochs(section, row)
            to = [str(paired(row.last, other.last)) if row is not other else "-" for other in (live, rows["ce"])]
            cells = [row.loss, str(row.settings.get("cache_views", "-")), str(number), f"{time(row, number):.1f}"]
            lines.append(f"| {' | '.join([*cells, percent(row.last), *to])} |")
            if row is not live:
                verdicts.setdefault(live.loss, {}).setdefault(verdict(row, live), []).append(row.loss)
        lines.append("")
        for live, found in verdicts.items():
            words = [f"{word} it: {listed(found.get(word, []))}" for word in VERDICTS]
            words += [f"not compared: {listed(found[NO_INTERVAL])}"] if NO_INTERVAL in found else []
            lines.append(f"- Beside {live} with the live teacher: {'; '.join(words)}.")
    if section.remarks:
        lines += [f"\n### Remarks on {section.name}\n", section.remarks.strip()]
    settings = dict(section.settings) | {"rows": {row.loss: dict(row.settings) for row in section.rows}}
    shared = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=110)
    return "\n".join([*lines, f"\n<details><summary>Settings</summary>\n\n```yaml\n{shared}```\n</details>\n"])


def loss_of(row: Row) -> str:
    """A row's loss, which is also the name of the row with the live teacher."""
    return row.settings.get("loss", row.loss)


def epochs(section: Section, row: Row) -> int:
    return row.settings.get("num_train_epochs", section.settings[row.student]["num_train_epochs"])


def time(row: Row, number: int) -> float:
    """What so many epochs of a row cost, in epochs of ce; views of a "full" cache were recorded before."""
    if loss_of(row) == "ce":
        return COSTS["ce"] * number
    if (cache := row.settings.get("teacher_cache")) is None:
        return COSTS["live"] * number
    recorded = min(row.settings.get("cache_views", math.inf), number) if cache == "new" else 0
    return COSTS["recorded"] * recorded + COSTS["read"] * (number - recorded)
