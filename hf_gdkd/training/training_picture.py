"""training.png: the curves of a run, and what teacher and student answer to some of its crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from transformers import Trainer
from transformers.trainer_utils import has_length

from ..data.views import View
from .run_files import JUDGED, PICTURE, replacing
from .style import STUDENT, TEACHER, short, style
from .teacher import logits_of

SHOWN = 6  # crops
CLASSES = 3  # of each, in the bars below it

_NOT_PARTS = {"loss", "epoch", "step", "learning_rate", "grad_norm", "kd_ramp", "data_wait"}


class Example(NamedTuple):
    """A training crop as the student sees it, its label if it has one, and the probabilities (C,) by model."""

    colours: np.ndarray
    label: int | None
    answers: dict[str, np.ndarray]


@torch.no_grad()
def examples_of(trainer: Trainer, view: View) -> list[Example]:
    """Some training images as the next epoch would crop them, with what teacher and student answer.

    Every process calls it, because a model may be split over them. There are none of streams and of maps.
    """
    rows = trainer.train_dataset
    if not has_length(rows):
        return []
    chosen = np.unique(np.linspace(0, len(rows) - 1, SHOWN).round().astype(int)).tolist()
    loader = DataLoader(Subset(rows, chosen), len(chosen), collate_fn=trainer.data_collator)
    batch = trainer._prepare_inputs(next(iter(loader)))
    with trainer._autocast():
        logits = {} if trainer.teacher is None else {"teacher": trainer.teacher(batch)}
        logits["student"] = logits_of(trainer.model.eval()(batch["pixel_values"]))
    if logits["student"].ndim != 2:
        return []
    answers = {name: each.float().softmax(1).cpu().numpy() for name, each in logits.items()}
    labels = batch.get("labels")
    known = labels is not None and labels.ndim == 1  # and not those of mixed images
    return [
        Example(
            view.colours(batch["pixel_values"][i].float().cpu()), int(labels[i]) if known else None,
            {name: each[i] for name, each in answers.items()},
        )
        for i in range(len(chosen))
    ]  # fmt: skip


def draw_training(
    folder: str | Path,
    log_history: Sequence[Mapping[str, float]],
    title: str,
    examples: Sequence[Example] = (),
    names: Sequence[str] = (),
) -> None:
    """Draw training.png over epochs: the loss and its parts, the evaluations' metric (one of `JUDGED`), and the shares.

    The shares of the gradient are drawn where the run logged them: for several losses, and automatic weights.

    Args:
        folder: that of the run.
        log_history: the trainer's.
        title: above the picture.
        examples: drawn below the curves, with bars of the most probable classes.
        names: the classes.
    """
    from matplotlib.figure import Figure

    shares = list(dict.fromkeys(name for row in log_history for name in row if name.startswith("share/")))
    width, below = (15 if shares else 10), (3.6 if examples else 0)
    with style(), replacing(Path(folder, PICTURE)) as part:
        figure = Figure(figsize=(width, 4 + below), layout="constrained")
        heights = [4, below] if examples else [1]
        above, *rest = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _draw_curves(above, log_history, shares)
        for each in rest:
            _draw_examples(each, examples, names)
        figure.suptitle(title)
        figure.savefig(part, dpi=120)


def _draw_curves(figure: Any, log_history: Sequence[Mapping[str, float]], shares: Sequence[str]) -> None:
    training = [row for row in log_history if "loss" in row]
    judged = next((key for key in JUDGED if any(f"eval_{key}" in row for row in log_history)), "top1")
    evaluations = [row for row in log_history if f"eval_{judged}" in row]
    every = dict.fromkeys(name for row in training for name in row if name not in _NOT_PARTS)
    names = [name for name in every if not name.startswith(("share/", "weight/"))]
    left, right, *more = figure.subplots(1, 3 if shares else 2)
    for name in ["loss", *names]:
        rows = [row for row in training if name in row]
        line = {"color": "black", "linewidth": 2} if name == "loss" else {"linewidth": 1.2}
        left.plot([row["epoch"] for row in rows], [row[name] for row in rows], label=name, **line)
    left.set(xlabel="epoch", ylabel="mean over samples", title="loss (weighted total) and its parts (unweighted)")
    if min((row["loss"] for row in training), default=0) > 0:
        left.set_yscale("log")
    left.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    right.plot([row["epoch"] for row in evaluations], [100 * row[f"eval_{judged}"] for row in evaluations], marker=".")
    right.set(xlabel="epoch", ylabel=f"{JUDGED[judged]}, %", title="evaluation")
    for axes in more:
        rows = [row for row in training if shares[0] in row]
        parts = [[row[name] for row in rows] for name in shares]
        labels = [name.removeprefix("share/") for name in shares]
        axes.stackplot([row["epoch"] for row in rows], parts, labels=labels)
        axes.set(xlabel="epoch", ylabel="share", ylim=(0, 1), title="shares of the gradient at the logits")
        axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _draw_examples(figure: Any, examples: Sequence[Example], names: Sequence[str]) -> None:
    """The crops in a row, and below each the probabilities of the classes that a model finds most probable."""
    who = list(examples[0].answers)
    colours = {"teacher": TEACHER, "student": STUDENT}
    pictures, bars = figure.subplots(2, len(examples), height_ratios=[2, 1.2], squeeze=False)
    for example, picture, axes in zip(examples, pictures, bars, strict=True):
        picture.imshow(example.colours, interpolation="nearest")
        picture.axis("off")
        picture.set_title("" if example.label is None else f"label: {short(names[example.label], 14)}", fontsize=8)
        largest = np.max(list(example.answers.values()), axis=0)
        classes = np.argsort(-largest, kind="stable")[:CLASSES]
        for place, name in enumerate(who):
            at = np.arange(len(classes)) + (place - (len(who) - 1) / 2) * 0.4
            axes.barh(at, example.answers[name][classes], 0.38, color=colours[name], label=name)
        axes.set_yticks(range(len(classes)), [short(names[i], 12) for i in classes], fontsize=7)
        axes.tick_params(axis="x", labelsize=7)
        axes.set(xlim=(0, 1), xticks=[0, 0.5, 1], ylim=(len(classes) - 0.4, -0.6))
    handles, labels = bars[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    which = "what teacher and student say of each" if len(who) > 1 else "what the student says of each"
    figure.suptitle(f"training crops, and {which} (probability)", fontsize=10)
