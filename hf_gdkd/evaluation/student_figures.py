"""Figures of how a student differs from its teacher."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image as PILImage
from sklearn.manifold import TSNE

from ..training.style import LINES, OTHER, STUDENT, TEACHER, short, style
from .differences import CASES, Difference, Differences
from .robustness import CORRUPTIONS

SHOWN = 30  # classes
MARKERS = "osx^"


def draw_agreement(found: Differences, names: Sequence[str]) -> Figure:
    """For the classes with the lowest agreement: who is right, or without labels how often they agree."""
    agreement = found.agreement_of()
    order = [i for i in np.argsort(agreement, kind="stable").tolist() if not np.isnan(agreement[i])][:SHOWN][::-1]
    counts = found.sums["images_of"].numpy()[order]
    with style():
        figure = Figure(figsize=(9, 0.22 * len(order) + 1.2), layout="constrained")
        axes = figure.subplots()
        if found.sums["labelled"]:
            parts = found.sums["cases"].numpy()[:, order] / counts
            for start, part, name, colour in zip(
                parts.cumsum(0) - parts, parts, CASES, ("#dddddd", TEACHER, STUDENT, "#000000"), strict=True
            ):
                axes.barh(range(len(order)), 100 * part, left=100 * start, color=colour, label=name)
            axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        else:
            axes.barh(range(len(order)), 100 * agreement[order], color=OTHER)
        axes.set_yticks(range(len(order)), [short(names[i]) for i in order], fontsize=8)
        axes.set(xlabel="% of the class's images", xlim=(0, 100), ylim=(-0.6, len(order) - 0.4))
        return figure


def draw_different(images: Sequence[PILImage.Image], differences: Sequence[Difference], names: Sequence[str]) -> Figure:
    """The images on which the models differ most, with what each says."""
    with style():
        lines = max(1, -(-len(images) // 4))
        figure = Figure(figsize=(9, 2.9 * lines), layout="constrained")
        for place, axes in enumerate(np.ravel(figure.subplots(lines, 4, squeeze=False))):
            axes.axis("off")
            if place >= len(images):
                continue
            each = differences[place]
            axes.imshow(images[place])
            said = [] if each.label is None else [f"label: {short(names[each.label])}"]
            said.append(f"teacher: {short(names[each.teacher])} {each.teacher_confidence:.0%}")
            said.append(f"student: {short(names[each.student])} {each.student_confidence:.0%}")
            axes.set_title("\n".join(said), fontsize=8, loc="left")
        return figure


def draw_correlations(found: Differences) -> Figure:
    """How the logits of classes go together over the images: teacher, student, and the difference."""
    teacher, student = found.correlations("teacher"), found.correlations("student")
    with style():
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        panels = {"teacher": teacher, "student": student, "student - teacher": student - teacher}
        for axes, (title, values) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            axes.grid(False)
            image = axes.imshow(values, vmin=-1, vmax=1, cmap="PuOr")
            axes.set(title=title, xlabel="class", ylabel="class")
        figure.colorbar(image, ax=figure.axes, shrink=0.8, label="correlation")
        return figure


def draw_robustness(curves: Mapping[str, Mapping[str, Sequence[float]]], measure: str) -> Figure:
    """What `measure` names (a share, drawn in %) over the strength of each damage."""
    with style():
        figure = Figure(figsize=(9, 2.8), layout="constrained")
        panels = figure.subplots(1, len(curves), sharey=True)
        for axes, (kind, by_model) in zip(panels, curves.items(), strict=True):
            for (name, values), colour in zip(by_model.items(), (TEACHER, STUDENT), strict=True):
                axes.plot(range(len(values)), 100 * np.array(values), "o-", color=colour, markersize=4, label=name)
            axes.set_xticks(range(len(values)), ["none", *(f"{x:g}" for x in CORRUPTIONS[kind])])
            axes.set(title=kind, ylim=(0, 103))
        panels[0].set_ylabel(measure)
        panels[0].legend(loc="lower left")
        return figure


def embed(features: np.ndarray) -> np.ndarray:
    """Features (N, D) as points (N, 2), near each other where the features are: t-SNE, perplexity at most 30."""
    return TSNE(perplexity=min(30, (len(features) - 1) / 3), init="pca", random_state=0).fit_transform(features)


def draw_features(
    points: Mapping[str, np.ndarray], classes: np.ndarray, names: Sequence[str], palette: np.ndarray | None = None
) -> Figure:
    """Points (N, 2) of each model, coloured by class (N): the ten most frequent of them, others in grey.

    `palette` is the colour (R, G, B; 0 to 255) of each of all classes (C, 3); None: those of the project's lines.
    """
    shown = np.argsort(-np.bincount(classes, minlength=len(names)), kind="stable")[:10]
    shown = sorted(i for i in shown.tolist() if (classes == i).any())
    with style():
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        for axes, (title, places) in zip(figure.subplots(1, len(points)), points.items(), strict=True):
            others = ~np.isin(classes, shown)
            axes.scatter(*places[others].T, s=4, color="#cccccc", linewidths=0)
            for i, each in enumerate(shown):
                own, marker = classes == each, MARKERS[i // len(LINES)]
                colour = LINES[i % len(LINES)] if palette is None else tuple(palette[each] / 255)
                axes.scatter(*places[own].T, s=9, color=colour, marker=marker, linewidths=0.6,
                             label=textwrap.shorten(names[each], 18, placeholder="…"))  # fmt: skip
            axes.set(title=title, xticks=[], yticks=[])
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
        return figure
