"""The part of a report that is about the teacher alone: what its predictions look like, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..training.style import short
from .distribution import Distribution, clusters, modes
from .distribution_figures import (
    chosen_classes,
    draw_calibration,
    draw_confusions,
    draw_entropies,
    draw_mass,
    draw_predictions,
    draw_rest,
)
from .report import Report

MOST_CLASSES = 2000  # in the table of classes


def describe_teacher(
    report: Report, found: Distribution, names: Sequence[str], augmented: Distribution | None = None
) -> dict[str, Any]:
    """Add what the teacher predicts to a report; returns the numbers.

    Args:
        report: what is added to.
        found: the teacher's predictions for images as they are (or as a cache has them).
        names: the classes.
        augmented: its predictions for strongly augmented images, if there are any.
    """
    both = {found.unit: found} | ({} if augmented is None else {"augmented images": augmented})
    numbers = {name: each.numbers() for name, each in both.items()}
    renormalized = found.average("renormalized")
    groups, own_modes = clusters(renormalized), modes(renormalized)
    report.section("The teacher's predictions")
    _summarise(report, numbers)
    shown = ", ".join(short(names[i]) for i in chosen_classes(found))
    grouped = f"each class's {found.unit}" if found.labelled else f"the {found.unit} for which each class is predicted"
    report.figure(
        "predictions", draw_predictions(found, names),
        f"Average prediction for {grouped}, at temperature {found.temperature:g}; the three largest entries in colour.",
        f"Bar charts of the average prediction, one for each of these classes: {shown}.",
    )  # fmt: skip
    report.figure(
        "rest", draw_rest(found, names),
        "The same without each image's largest entry: as it is, and renormalised. Several high bars are several modes: "
        "what plain distillation hides behind the largest class, and GDKD's groups bring out.",
        "Pairs of bar charts of the average prediction without its largest entry, as it is and renormalised, "
        f"for these classes: {shown}.",
    )  # fmt: skip
    report.figure(
        "entropies", draw_entropies(both),
        f"Entropy of the predictions in nats (at most {np.log(found.num_classes):.2f}), whole and without top-1.",
        "Two histograms: the entropy of the whole prediction, and of the rest renormalised.",
    )  # fmt: skip
    if found.labelled:
        report.figure(
            "calibration", draw_calibration(both),
            "How often predictions of each confidence are right: below the dotted line the teacher is too sure.",
            "A calibration diagram beside a histogram of the confidence.",
        )  # fmt: skip
    report.section("How many classes belong to the top group")
    report.figure(
        "mass", draw_mass(both),
        "Mean probability of the k largest classes; circles: the knee, where the curve stands highest above the line "
        "from its first to its last point.",
        f"The mean mass of the k largest classes over k; its knee is at k = {numbers[found.unit]['knee']}.",
    )  # fmt: skip
    rows = [[k, *(each.mass[k - 1] for each in both.values())] for k in found.ks]
    report.table("Mean probability of the k largest classes", ["k", *both], rows)
    report.section("Which classes are confused with which")
    report.figure(
        "confusions", draw_confusions(renormalized, groups, names),
        "What the images of each class give the other classes, of the rest renormalised; boxes: clusters.",
        f"A heat map of classes by classes with {len(groups)} clusters of classes along its diagonal.",
    )  # fmt: skip
    if groups:
        report.table(
            "Clusters: classes that take each other's rest",
            ["cluster", "size", "classes"],
            [[i + 1, len(group), ", ".join(names[j] for j in group)] for i, group in enumerate(groups)],
            words=["classes"],
        )
    report.table(*_classes(found, names, own_modes), words=["modes of the rest"])
    several = sum(len(each) > 1 for each in own_modes)
    return {
        "predictions": numbers,
        "classes_with_several_modes": several,
        "clusters": [[names[j] for j in group] for group in groups],
        "classes": _numbers_of_classes(found, names, own_modes),
    }


def _summarise(report: Report, numbers: dict[str, dict[str, Any]]) -> None:
    labels = {
        "images": "images",
        "top1": "top-1 accuracy",
        "top5": "top-5 accuracy",
        "nll": "negative log-likelihood, nats",
        "ece": "expected calibration error",
        "confidence": "mean confidence",
        "entropy": "entropy, nats",
        "rest_entropy": "entropy without top-1, nats",
        "knee": "knee of the mass of the top k",
    }
    first = next(iter(numbers.values()))
    rows = [[text, *(each.get(key) for each in numbers.values())] for key, text in labels.items() if key in first]
    report.table("The teacher in numbers", ["measure", *numbers], rows)


def _classes(
    found: Distribution, names: Sequence[str], own_modes: Sequence[Sequence[tuple[int, float]]]
) -> tuple[str, list[str], list[list[object]]]:
    counts = found.sums["images_of"].int().tolist()
    columns = ["class", found.unit] + (["accuracy, %"] if found.labelled else [])
    columns += ["confidence, %", "entropy", "entropy without top-1", "modes of the rest"]
    accuracy, confidence = 100 * found.accuracies(), 100 * found.of_classes("confidence_of")
    entropy, rest = found.of_classes("entropy"), found.of_classes("rest_entropy")
    rows = []
    for i in np.argsort(-np.array(counts), kind="stable")[:MOST_CLASSES].tolist():
        text = ", ".join(f"{names[j]} {share:.0%}" for j, share in own_modes[i])
        own = [float(accuracy[i])] if found.labelled else []
        rows.append([names[i], counts[i], *own, float(confidence[i]), float(entropy[i]), float(rest[i]), text])
    return "Classes; a mode has at least twice its even share of the rest", columns, rows


def _numbers_of_classes(
    found: Distribution, names: Sequence[str], own_modes: Sequence[Sequence[tuple[int, float]]]
) -> dict[str, dict[str, Any]]:
    largest = min(20, found.num_classes)
    averages = {name: found.average(name) for name in ("prediction", "rest", "renormalized")}
    accuracy, per_class = (
        found.accuracies(),
        {x: found.of_classes(x) for x in ("confidence_of", "entropy", "rest_entropy")},
    )
    numbers = {}
    for i, name in enumerate(names):
        own = {"images": int(found.sums["images_of"][i])}
        own |= {"top1": float(accuracy[i])} if found.labelled else {}
        own |= {key.removesuffix("_of"): float(values[i]) for key, values in per_class.items()}
        for key, average in averages.items():
            line = np.nan_to_num(average[i])
            own[key] = {names[j]: float(line[j]) for j in np.argsort(-line, kind="stable")[:largest].tolist()}
        own["modes"] = [names[j] for j, _ in own_modes[i]]
        numbers[name] = own
    return numbers
