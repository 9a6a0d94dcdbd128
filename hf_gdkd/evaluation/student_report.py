"""The part of a report that is about teacher and student: where they differ, and who is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..data.datasets import Viewed
from ..data.decoding import to_rgb
from ..errors import InputError
from ..training.feature_hooks import FeatureHooks
from ..training.teacher import Teacher
from .differences import Differences
from .distribution import Distribution
from .distribution_figures import draw_calibration
from .passes import OwnViews, answers
from .report import Report
from .robustness import robustness
from .student_figures import (
    draw_agreement,
    draw_correlations,
    draw_different,
    draw_features,
    draw_robustness,
    embed,
)

FEATURE_POINTS = 2000  # images or pixels, at most, for the t-SNE
DAMAGED_ROWS = 500  # at most, for the robustness


def describe_student(
    report: Report,
    found: Differences,
    distributions: Mapping[str, Distribution],
    models: Mapping[str, Teacher],
    rows: Dataset,
    names: Sequence[str],
    **options: Any,
) -> dict[str, Any]:
    """Add what the student did not learn to a report; returns the numbers.

    Args:
        report: what is added to.
        found: how the models differ on the rows.
        distributions: what the models predict for the rows, by `teacher` and `student`.
        models: the models, likewise.
        rows: samples with `image` and, if labelled, `labels`.
        names: the classes.
        options: `batch_size` and `device`.
    """
    numbers = {"agreement": found.numbers(), "predictions": {x: each.numbers() for x, each in distributions.items()}}
    labelled = bool(found.sums["labelled"])
    report.section("What the student did not learn")
    summarise(report, numbers)
    report.figure(
        "agreement", draw_agreement(found, names),
        "The classes with the lowest agreement" + (", and who is right." if labelled else "."),
        "Horizontal bars, one for each class: the shares of its images on which teacher and student agree"
        + (", or which of them is right." if labelled else "."),
    )  # fmt: skip
    report.table(*by_class(found, names))
    pairs = [[names[a], names[b], count] for a, b, count in found.disagreements()]
    if pairs:
        report.table(
            "What they say where they differ", ["teacher", "student", "images"], pairs, words=["student"]
        )  # fmt: skip
    images = [to_rgb(rows[each.row]["image"]) for each in found.most_different]
    said = "; ".join(f"teacher {names[x.teacher]}, student {names[x.student]}" for x in found.most_different)
    report.figure(
        "different", draw_different(images, found.most_different, names),
        "The images on which they differ most, by KL(teacher || student).",
        f"{len(images)} images with both answers: {said}.",
    )  # fmt: skip
    numbers["most_different"] = [each._asdict() for each in found.most_different]
    if all(each.isfinite().all() for each in found.sums.values()):
        numbers["correlations"] = correlations(report, found)
    if labelled:
        report.figure(
            "calibration-of-both", draw_calibration(dict(distributions)),
            "How often predictions of each confidence are right: below the dotted line a model is too sure.",
            "A calibration diagram of teacher and student beside a histogram of their confidence.",
        )  # fmt: skip
    _features(report, models, rows, names, **options)
    curves = robustness(models, spread(rows, DAMAGED_ROWS), **options)
    report.figure(
        "robustness", draw_robustness(curves, "top-1 accuracy, %" if labelled else "same answer as undamaged, %"),
        f"Damaged images: noise, blur, JPEG and contrast, of {min(len(rows), DAMAGED_ROWS)} rows.",
        "Four panels with a curve for teacher and student over the strength of the damage.",
    )  # fmt: skip
    return numbers | {"robustness": curves}


def spread(rows: Dataset, most: int) -> Dataset:
    """At most so many of the rows, evenly spread over them."""
    if len(rows) <= most:
        return rows
    return rows.select(np.linspace(0, len(rows) - 1, most).round().astype(int))


def summarise(report: Report, numbers: dict[str, Any], unit: str = "images") -> None:
    """Add the numbers of both models, and where they agree: `predictions` by role, and `agreement`."""
    labels = {
        "top1": "top-1 accuracy", "top5": "top-5 accuracy", "nll": "negative log-likelihood, nats",
        "ece": "expected calibration error", "confidence": "mean confidence", "entropy": "entropy, nats",
        "rest_entropy": "entropy without top-1, nats",
    }  # fmt: skip
    both = numbers["predictions"]
    rows = [[text, *(each[key] for each in both.values())] for key, text in labels.items() if key in both["teacher"]]
    report.table("Teacher and student in numbers", ["measure", *both], rows)
    shares = numbers["agreement"].get("cases", {}) | {"agreement": numbers["agreement"]["agreement"]}
    rows = [[name, 100 * share] for name, share in shares.items()]
    report.table(
        f"Where they agree; the mean KL(teacher || student) is {numbers['agreement']['kl']:.3f} nats",
        [unit, "%"],
        rows,
    )


def by_class(
    found: Differences, names: Sequence[str], unit: str = "images"
) -> tuple[str, list[str], list[list[object]]]:
    """Caption, columns and rows of a table of classes, the lowest agreement first."""
    counts, agreement = found.sums["images_of"].int().tolist(), 100 * found.agreement_of()
    columns, cases = ["class", unit, "agreement, %"], None
    if found.sums["labelled"]:
        columns += ["teacher alone right, %", "student alone right, %", "both wrong, %"]
        cases = 100 * found.sums["cases"].numpy() / np.maximum(counts, 1)
    rows = [
        [names[i], counts[i], float(agreement[i]), *([] if cases is None else cases[1:, i].tolist())]
        for i in np.argsort(agreement, kind="stable").tolist()
        if counts[i] > 0
    ]
    return "Agreement by class", columns, rows


def correlations(report: Report, found: Differences, unit: str = "images") -> dict[str, float]:
    """Add how the logits of classes go together over images or pixels; returns how far the models differ in that."""
    report.figure(
        "correlations", draw_correlations(found),
        f"Correlation of the logits of each two classes over the {unit}: where the difference is dark, the student "
        "puts classes together, or apart, that the teacher does not.",
        "Three heat maps of classes by classes: teacher, student, and student minus teacher.",
    )  # fmt: skip
    difference = found.correlations("student") - found.correlations("teacher")
    return {"mean_absolute_difference": float(np.nanmean(np.abs(difference)))}


def _features(
    report: Report, models: Mapping[str, Teacher], rows: Dataset, names: Sequence[str], **options: Any
) -> None:
    """The t-SNE of the features that enter the models' heads."""
    find = partial(pooled_features, models, spread(rows, FEATURE_POINTS), **options)
    show_features(report, find, names, by="label" if "labels" in rows.column_names else "the teacher's class")


def show_features(
    report: Report,
    find: Callable[[], tuple[dict[str, np.ndarray], np.ndarray]],
    names: Sequence[str],
    *,
    unit: str = "images",
    by: str = "label",
    palette: np.ndarray | None = None,
) -> None:
    """Add a t-SNE of what `find` returns: the features (N, D) of each model, and classes (N).

    Where it raises an InputError, the report says so instead; of fewer than ten points nothing is shown.

    Args:
        report: what is added to.
        find: finds the features.
        names: the classes.
        unit: what a point is.
        by: what the classes are.
        palette: as in `draw_features`.
    """
    try:
        features, classes = find()
    except InputError as error:
        report.text(f"The features of the models cannot be shown: {error}")
        return
    if len(classes) < 10:
        return
    points = {name: embed(each) for name, each in features.items()}
    grey = ": the ten most frequent classes, and others in grey" if len(np.unique(classes)) > 10 else ""
    report.figure(
        "features", draw_features(points, classes, names, palette),
        f"The features that enter each model's head (t-SNE of {len(classes):,} {unit}), by {by}{grey}.",
        f"Two scatter plots, of the teacher's and the student's features of {unit}, coloured by class.",
    )  # fmt: skip


@torch.no_grad()
def pooled_features(
    models: Mapping[str, Teacher], rows: Dataset, **options: Any
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The features (N, D) of each model that enter its head, and the labels, or the teacher's classes (N).

    Raises:
        InputError: a model without a linear head.
    """
    hooks = {}
    for name, model in models.items():
        first = next(model.model.parameters())
        pixels = torch.zeros(2, 3, *model.view.size, device=first.device, dtype=first.dtype)
        hooks[name] = FeatureHooks(model.model, lambda m=model.model, p=pixels: m(p), name=model.name)
        if hooks[name].head is None:
            raise InputError(f"{model.name} has no linear classifier head: use another model.")
    samples = Viewed(rows, OwnViews({name: model.view for name, model in models.items()}))
    found, classes = {name: [] for name in models}, []
    with hooks["teacher"].collecting(), hooks["student"].collecting():
        for each in answers(models, samples, shared=False, **options):
            for name, parts in found.items():
                parts.append(hooks[name].take().pooled.float().cpu().numpy())
            classes.append(each.logits["teacher"].argmax(1) if each.labels is None else each.labels)
    return {name: np.concatenate(parts) for name, parts in found.items()}, torch.cat(classes).numpy()
