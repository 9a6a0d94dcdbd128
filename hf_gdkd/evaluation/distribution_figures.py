"""Figures of a `Distribution`: the average predictions of classes, the mass of the top k, calibration, confusions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..training.style import OTHER, STUDENT, TEACHER, short, style
from .distribution import BINS, HISTOGRAM, Distribution

SHOWN = 6  # classes in a figure of averages
MARKED = 3  # largest classes that are named in it
LARGEST_MATRIX = 40  # classes


def chosen_classes(found: Distribution) -> list[int]:
    """Classes that have images, evenly spread over all: those that the figures show."""
    present = np.flatnonzero(found.sums["images_of"].numpy())
    return present[np.unique(np.linspace(0, len(present) - 1, min(SHOWN, len(present))).round().astype(int))].tolist()


def draw_predictions(found: Distribution, names: Sequence[str]) -> Figure:
    """The average prediction of some classes, the largest entries marked (the paper's Figure 4)."""
    chosen, average = chosen_classes(found), found.average("prediction")
    with style():
        lines = -(-len(chosen) // 2)
        figure = Figure(figsize=(9, 1.9 * lines + 0.4), layout="constrained")
        for place, axes in enumerate(np.ravel(figure.subplots(lines, 2, squeeze=False))):
            if place < len(chosen):
                _bars(axes, average[chosen[place]], names, names[chosen[place]])
            else:
                axes.axis("off")
        figure.supylabel("mean probability", fontsize=9)
        return figure


def draw_rest(found: Distribution, names: Sequence[str]) -> Figure:
    """The same without each image's largest entry, as it is and renormalised (the paper's Figure 5)."""
    chosen = chosen_classes(found)
    averages = {"without top-1": found.average("rest"), "renormalised": found.average("renormalized")}
    with style():
        figure = Figure(figsize=(9, 1.9 * len(chosen) + 0.4), layout="constrained")
        for line, row in zip(chosen, figure.subplots(len(chosen), 2, squeeze=False), strict=True):
            for axes, (title, average) in zip(row, averages.items(), strict=True):
                _bars(axes, average[line], names, f"{names[line]}, {title}")
        figure.supylabel("mean probability", fontsize=9)
        return figure


def _bars(axes: Axes, values: np.ndarray, names: Sequence[str], title: str) -> None:
    largest = np.argsort(-values, kind="stable")[:MARKED]
    colours = np.full(len(values), TEACHER, object)
    colours[largest] = STUDENT
    if len(values) <= LARGEST_MATRIX:
        axes.bar(range(len(values)), values, color=colours.tolist())
    else:
        axes.vlines(range(len(values)), 0, values, color=TEACHER, linewidth=0.6)
        axes.vlines(largest, 0, values[largest], color=STUDENT, linewidth=1.6)
    for i in largest:
        align = "left" if i < len(values) / 6 else "right" if i > len(values) * 5 / 6 else "center"
        axes.annotate(short(names[i]), (i, values[i]), (0, 1), textcoords="offset points", ha=align, fontsize=7)
    axes.set(title=title, xlim=(-0.7, len(values) - 0.3), ylim=(0, 1.2 * max(values.max(), 1e-12)))
    axes.set_xticks(range(len(values)) if len(values) <= 12 else np.linspace(0, len(values) - 1, 6).astype(int))


def draw_mass(by_name: dict[str, Distribution]) -> Figure:
    """The mean mass of the top k, and the knee of each curve."""
    with style():
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        for (name, found), colour in zip(by_name.items(), (TEACHER, STUDENT, OTHER), strict=False):
            k = found.numbers()["knee"]
            axes.plot(found.ks, found.mass, marker=".", color=colour, label=f"{name}: knee at k = {k}")
            axes.plot(k, found.mass[k - 1], "o", color=colour, markersize=9, fillstyle="none")
        axes.set(xlabel="k", ylabel="mean probability of the k largest classes", xticks=list(found.ks))
        axes.legend(loc="lower right")
        return figure


def draw_entropies(by_name: dict[str, Distribution]) -> Figure:
    """Histograms of the entropy of the prediction, and of the rest."""
    with style():
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        for place, (axes, title) in enumerate(
            zip(figure.subplots(1, 2), ("whole prediction", "without top-1, renormalised"), strict=True)
        ):
            for (name, found), colour in zip(by_name.items(), (TEACHER, STUDENT, OTHER), strict=False):
                edges = np.linspace(0, np.log(found.num_classes), HISTOGRAM + 1)
                axes.stairs(found.sums["histograms"][place].numpy() / found.images, edges, color=colour, label=name)
            axes.set(title=title, xlabel="entropy, nats", ylabel=f"share of the {found.unit}")
            axes.legend()
        return figure


def draw_calibration(by_name: dict[str, Distribution]) -> Figure:
    """How often a prediction of each confidence is right, and how many have it."""
    with style():
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect")
        edges = np.linspace(0, 1, BINS + 1)
        for (name, found), colour in zip(by_name.items(), (TEACHER, STUDENT, OTHER), strict=False):
            count, confidence, correct = found.sums["calibration"].numpy()
            there = count > 0
            ece = found.numbers()["ece"]
            left.plot(confidence[there] / count[there], correct[there] / count[there], "o-", color=colour,
                      markersize=4, label=f"{name}: ECE {ece:.3f}")  # fmt: skip
            right.stairs(count / count.sum(), edges, color=colour, label=name)
        left.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1.02), ylim=(0, 1.02))
        right.set(xlabel="confidence", ylabel=f"share of the {found.unit}", xlim=(0, 1))
        left.legend()
        right.legend()
        return figure


def draw_confusions(renormalized: np.ndarray, groups: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """What each class gives the others of its rest (C, C), the classes of a cluster side by side."""
    order = [i for group in groups for i in group]
    order += [i for i in range(len(names)) if i not in set(order)] if len(names) <= LARGEST_MATRIX else []
    order = (order or list(range(len(names))))[:LARGEST_MATRIX]
    with style():
        side = max(3.2, 0.22 * len(order) + 1.6)
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axes = figure.subplots()
        axes.grid(False)
        image = axes.imshow(renormalized[np.ix_(order, order)], vmin=0)
        figure.colorbar(image, ax=axes, shrink=0.7, label="mean share of the rest")
        labels = [short(names[i], 16) for i in order]
        axes.set_xticks(range(len(order)), labels, rotation=90, fontsize=7)
        axes.set_yticks(range(len(order)), labels, fontsize=7)
        axes.set(xlabel="class that it might have been", ylabel="class of the images")
        start = -0.5
        for group in groups:
            if start + len(group) > len(order):
                break
            box = {"fill": False, "edgecolor": "#d55e00", "linewidth": 1.5}
            axes.add_patch(Rectangle((start, start), len(group), len(group), **box))
            start += len(group)
        return figure
