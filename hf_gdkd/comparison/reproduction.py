"""What others reported for the paper's recipes, beside what was measured here; "not run" until somebody runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..commands.recipes import recipe_settings
from ..errors import InputError, first_sentence
from ..training.run_files import METRICS_FILE, read_run_settings

INTRODUCTION = """\
## The paper's experiments

Each cell is what others reported / what was reached here: top-1 accuracy in %, here of the last epoch of one run. The
commands stand below each table; a report that is written after they ran holds their figures.

The hours are expected for one run on one A100 or H100, not measured. On CIFAR-100 a step is put at 6 ms for data and
Trainer, 0.4 ms a layer of the student and 0.12 ms a layer of the teacher, since networks so small wait for the launch
of their kernels, and all evaluations at 0.1 hours. On ImageNet it is 1,800 and 1,350 images a second, which take 4
cores or more to decode.
"""


def reproduction(reported: Path) -> str:
    """The section of the report, with the figures of those runs that are in their folders.

    Args:
        reported: YAML file: groups of recipes with `title`, `about`, `losses` (with the flags of a variant) and
            `recipes`, each with the hours of a run and a figure a loss, None where there is none.

    Raises:
        InputError: it cannot be read, has another structure, or names a recipe that does not exist.
    """
    try:
        groups = yaml.safe_load(reported.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{reported} cannot be read: {first_sentence(error)}") from error
    keys = {"title", "about", "losses", "recipes"}
    if not isinstance(groups, list) or not all(isinstance(group, dict) and keys <= group.keys() for group in groups):
        raise InputError(f"{reported} is not a list of groups, each with {', '.join(sorted(keys))}: write it so.")
    return "\n".join([INTRODUCTION, *map(_as_markdown, groups)])


def commands(group: Mapping[str, Any]) -> list[str]:
    """The command of every cell of a group."""
    start = "accelerate launch scripts/distill.py"
    return [f"{start} --recipe {name} --loss {loss}" for name in group["recipes"] for loss in group["losses"]]


def _as_markdown(group: Mapping[str, Any]) -> str:
    head = ["recipe", *group["losses"], "hours a run"]
    lines = [f"### {group['title']}\n", group["about"], f"\n| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, (hours, *figures) in group["recipes"].items():
        cells = [
            f"{'-' if figure is None else f'{figure:.2f}'} / {_here(name, *loss.split(' --standardize '))}"
            for loss, figure in zip(group["losses"], figures, strict=True)
        ]
        lines.append(f"| {' | '.join([name, *cells, str(hours)])} |")
    lines += ["\n<details><summary>Commands</summary>\n\n```", *commands(group), "```\n</details>\n"]
    return "\n".join(lines)


def _here(name: str, loss: str, standardize: str | None = None) -> str:
    """The top-1 accuracy of a run of this recipe; "not run" if it was cut short or has other settings."""
    settings = recipe_settings(name, loss, standardize)
    folder, free = settings["output_dir"], ("output_dir", "teacher", "per_device_train_batch_size")
    run, metrics = read_run_settings(folder), Path(folder, METRICS_FILE)
    if run is None or not metrics.is_file() or {"max_steps", "train_rows"} & run.keys():
        return "not run"
    if any(run.get(key, value) != value for key, value in settings.items() if key not in free):
        return "not run"
    return f"{100 * json.loads(metrics.read_text(encoding='utf-8'))['top1']:.2f}"
