"""What each model is shown: how its classes match the data set's, and the same crops as each sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure

from ..data.datasets import Augmented
from ..data.views import TrainTransform, View
from ..models.heads import class_names
from ..training.style import style
from ..training.teacher import Teacher
from .report import Report

CROPS = 6


def describe_views(
    report: Report,
    models: Mapping[str, Teacher],
    rows: Dataset,
    names: Sequence[str],
    *,
    crop_scale: float,
    flip: bool,
) -> None:
    """Add how the models' classes are matched and how they see images, with the same crops side by side."""
    report.section("What each model sees")
    views = {role: model.view for role, model in models.items()}
    properties = {
        "size, pixels": lambda view: " x ".join(map(str, view.size)),
        "interpolation": lambda view: view.interpolation.value,
        "mean, of 255": lambda view: ", ".join(f"{float(x):.1f}" for x in view.mean),
        "standard deviation": lambda view: ", ".join(f"{float(x):.1f}" for x in view.std),
    }
    rows_of = [[name, *(read(view) for view in views.values())] for name, read in properties.items()]
    report.table("How each model sees an image", ["view", *views], rows_of, words=list(views))
    crops = same_crops(views, rows, crop_scale=crop_scale, flip=flip)
    report.figure(
        "crops", draw_crops(crops),
        "Training crops as the model sees them." if len(views) == 1 else
        "Training crops of the same images, as each model sees them: both see the same part.",
        f"{min(CROPS, len(rows))} crops, for {' and '.join(views)}.",
    )  # fmt: skip
    own = {role: class_names(model.model) for role, model in models.items()}
    columns = {role: range(len(names)) if m.columns is None else m.columns.tolist() for role, m in models.items()}
    table = [[name, *(own[role][columns[role][i]] for role in models)] for i, name in enumerate(names)]
    report.table("Which class of a model stands for each class", ["class", *models], table, words=list(models))


def same_crops(
    views: Mapping[str, View], rows: Dataset, *, crop_scale: float, flip: bool
) -> dict[str, list[np.ndarray]]:
    """Training crops of some rows as each model sees them, as colours (H, W, 3) from 0 to 1."""
    first, *others = views
    keys = {first: "pixel_values"} | {role: f"{role}_pixel_values" for role in others}
    transform = TrainTransform(
        views[first], {keys[role]: views[role] for role in others}, crop_scale=crop_scale, flip=flip
    )
    chosen = np.linspace(0, len(rows) - 1, min(CROPS, len(rows))).round().astype(int).tolist()
    samples = Augmented(rows, transform, seed=0).__getitems__(chosen)
    return {role: [views[role].colours(sample[keys[role]]) for sample in samples] for role in views}


def draw_crops(crops: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """A row of crops for each model."""
    number = len(next(iter(crops.values())))
    with style():
        figure = Figure(figsize=(1.5 * number, 1.6 * len(crops) + 0.3), layout="constrained")
        for line, (role, pictures) in zip(
            figure.subplots(len(crops), number, squeeze=False), crops.items(), strict=True
        ):
            for axes, picture in zip(line, pictures, strict=True):
                axes.imshow(picture, interpolation="nearest")
                axes.axis("off")
            line[0].set_title(role, loc="left")
        return figure
