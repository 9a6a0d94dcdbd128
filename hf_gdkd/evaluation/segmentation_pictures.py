"""A picture of what segmenters see: images, masks, the teacher's and the student's answers, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..data.masks import IGNORE
from ..training.run_files import replacing
from ..training.style import COLOURS
from .segmentation import predicted_classes
from .segmentation_measurement import Seen, Segmenter

IGNORED = "#ffffff"
RIGHT, WRONG, TEACHER_WRONG, BOTH_WRONG = "#dddddd", "#d55e00", "#56b4e9", "#000000"
LARGEST_LEGEND = 30  # classes


def draw_segmentation(
    path: Path,
    rows: Dataset,
    student: Segmenter,
    label_names: Sequence[str],
    *,
    teacher: Segmenter | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    images: int = 4,
    window: int | None = None,
) -> None:
    """Draw some images, evenly spread over the rows: image, ground truth, the models' answers, and where they differ.

    Args:
        path: the PNG to write.
        rows: samples with `image` and `labels` (the mask).
        student, teacher: models with their views, on the device where they are to compute.
        label_names: the classes.
        palette: a colour (R, G, B; 0 to 255) a class; None: `palette_of`.
        images: how many.
        window: as in `measure_segmenters`.
    """
    models = {"prediction": student} if teacher is None else {"teacher": teacher, "student": student}
    colours = palette_of(len(label_names)) if palette is None else np.asarray(palette, np.uint8)
    chosen = sorted(set(np.linspace(0, len(rows) - 1, images).round().astype(int).tolist()))
    titles = ["image", "ground truth", *models, "where it is wrong" if teacher is None else "where they differ"]
    figure = Figure(figsize=(2.4 * len(titles), 2.3 * len(chosen) + 1), layout="constrained")
    used: set[int] = set()
    for line, index in enumerate(chosen):
        image, labels, answers = answers_to(rows, index, list(models.values()), window)
        panels = [image, *(paint(classes, labels, colours) for classes in (labels, *answers))]
        panels.append(paint_differences(labels, *answers))
        for place, (title, panel) in enumerate(zip(titles, panels, strict=True)):
            axes = figure.add_subplot(len(chosen), len(titles), line * len(titles) + place + 1, xticks=[], yticks=[])
            axes.imshow(panel, interpolation="nearest")
            axes.set_title(title if line == 0 else "", fontsize=10)
        used |= set(np.unique([labels, *answers]).tolist()) - {IGNORE}
    shown = sorted(used)[:LARGEST_LEGEND]
    classes = {label_names[i]: colours[i] / 255 for i in shown} | {"ignored": IGNORED}
    if teacher is None:
        verdicts = {"right": RIGHT, "wrong": WRONG}
    else:
        verdicts = {
            "both right": RIGHT,
            "student wrong": WRONG,
            "teacher wrong": TEACHER_WRONG,
            "both wrong": BOTH_WRONG,
        }
    for place, legend in {"lower left": classes, "lower right": verdicts}.items():
        patches = [Patch(facecolor=colour, edgecolor="grey", label=name) for name, colour in legend.items()]
        figure.legend(handles=patches, loc=f"outside {place}", ncols=max(1, len(patches) // 3), fontsize=8)
    with replacing(path) as part:
        figure.savefig(part, dpi=110)


@torch.no_grad()
def answers_to(
    rows: Dataset, index: int, models: Sequence[Segmenter], window: int | None = None
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """A row's image (H, W, 3), mask (H, W) and what each model predicts for every pixel (H, W)."""
    seen = Seen(rows, [each.view for each in models])
    pixels, labels = seen[index]
    answers = []
    for each, own in zip(models, pixels, strict=True):
        each.model.eval()
        answers.append(predicted_classes(each.logits(own[None], window), labels.shape)[0].cpu().numpy())
    image = seen.rows[index]["image"].convert("RGB")
    return np.asarray(image), labels.numpy(), answers


def palette_of(num_classes: int) -> np.ndarray:
    """A colour (R, G, B; 0 to 255) a class (C, 3): Okabe and Ito's, then the same darker, then lighter, and again."""
    base = 255 * np.array([to_rgb(colour) for colour in COLOURS])
    rounds = np.concatenate([base, 0.55 * base[1:], 255 - 0.45 * (255 - base[1:])])
    return np.resize(rounds, (num_classes, 3)).round().astype(np.uint8)


def paint(classes: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Class ids (H, W) as colours (H, W, 3); pixels that have no label are left white."""
    known = labels != IGNORE
    return np.where(known[..., None], colours[np.where(known, classes, 0)], 255).astype(np.uint8)


def paint_differences(labels: np.ndarray, *answers: np.ndarray) -> np.ndarray:
    """The colour (H, W, 3) that says for every labelled pixel who is wrong; the student's answer is the last."""
    student, teacher = answers[-1] != labels, answers[0] != labels
    verdicts = [student & teacher, student, teacher] if len(answers) > 1 else [student]
    colours = [BOTH_WRONG, WRONG, TEACHER_WRONG] if len(answers) > 1 else [WRONG]
    values = [255 * np.array(to_rgb(colour)) for colour in (IGNORED, *colours, RIGHT)]
    conditions = [labels == IGNORE, *verdicts]
    return np.select([each[..., None] for each in conditions], values[:-1], values[-1]).astype(np.uint8)
