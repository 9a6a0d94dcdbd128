"""The report of segmenters: what is said of images for classifiers, of pixels, with maps and the IoU of each class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset
from PIL import Image as PILImage
from torch import Tensor
from tqdm.auto import tqdm

from ..data.decoding import to_rgb
from ..data.masks import IGNORE
from ..training.label_maps import logits_at
from .differences import Differences
from .distribution import Distribution
from .distribution_figures import draw_calibration
from .passes import Answers
from .pixel_features import pixel_features
from .report import Report
from .robustness import CORRUPTIONS, corrupt
from .segmentation import ConfusionMatrix, segmentation_metrics
from .segmentation_measurement import Seen, Segmenter
from .segmentation_pictures import draw_segmentation, palette_of
from .student_figures import draw_agreement, draw_robustness
from .student_report import FEATURE_POINTS, by_class, correlations, show_features, spread, summarise

PIXELS = 2000  # of an image
FEATURE_ROWS = 200  # at most, for the t-SNE
DAMAGED_ROWS = 50  # at most, for the robustness


@torch.no_grad()
def pixel_answers(
    models: Mapping[str, Segmenter],
    rows: Sequence[Mapping[str, Any]],
    *,
    window: int | None = None,
    device: torch.device | str = "cpu",
    shared: bool = True,
) -> Iterator[Answers]:
    """What segmenters answer at pixels that have a label: of each image 2,000 at most, evenly spread over these.

    Logits are resized bilinearly to the mask. The processes of torch.distributed share the images if `shared`.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if shared and dist.is_initialized() else (0, 1)
    seen = Seen(rows, [each.view for each in models.values()])
    for each in models.values():
        each.model.to(device).eval()
    for index in tqdm(range(rank, len(rows), processes), desc="analysing", leave=False, disable=rank > 0 or None):
        pixels, labels = seen[index]
        places = spread_pixels(labels)
        if len(places):
            logits = {
                name: logits_at(each.logits(own[None], window), tuple(labels.shape))[0].flatten(1).T.cpu()[places]
                for (name, each), own in zip(models.items(), pixels, strict=True)
            }
            yield Answers([index] * len(places), logits, labels.flatten()[places].long())


def spread_pixels(labels: Tensor) -> Tensor:
    """The places, in the flat mask (H, W), of at most 2,000 pixels that have a label."""
    places = (labels.flatten() != IGNORE).nonzero().flatten()
    if len(places) <= PIXELS:
        return places
    return places[torch.linspace(0, len(places) - 1, PIXELS).round().long()]


class Damaged(Sequence):
    """Rows with each image changed."""

    def __init__(self, rows: Dataset, change: Callable[[PILImage.Image], PILImage.Image]) -> None:
        self.rows, self.change = rows, change

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {**row, "image": self.change(to_rgb(row["image"]))}


def pixel_robustness(models: Mapping[str, Segmenter], rows: Dataset, **options: Any) -> dict[str, dict[str, list]]:
    """Mean IoU on damaged images, by kind of damage and model, first of undamaged images; the pixels are sampled.

    Args:
        models, rows: as in `pixel_answers`; every process gets all.
        options: its `window` and `device`.
    """

    def mean_iou(change: Callable[[PILImage.Image], PILImage.Image]) -> dict[str, float]:
        confusions: dict[str, ConfusionMatrix] = {}
        for each in pixel_answers(models, Damaged(rows, change), shared=False, **options):
            for name, logits in each.logits.items():
                found = confusions.setdefault(name, ConfusionMatrix(logits.shape[1]))
                found.add(logits.argmax(1), each.labels)
        return {name: segmentation_metrics(each.counts)["mean_iou"] for name, each in confusions.items()}

    clean = mean_iou(lambda image: image)
    curves = {kind: {name: [value] for name, value in clean.items()} for kind in CORRUPTIONS}
    for kind, strengths in CORRUPTIONS.items():
        for strength in strengths:
            for name, value in mean_iou(partial(corrupt, kind=kind, strength=strength)).items():
                curves[kind][name].append(value)
    return curves


def describe_segmenters(
    report: Report,
    folder: Path,
    measured: Mapping[str, Mapping[str, Any]],
    distributions: Mapping[str, Distribution],
    found: Differences | None,
    models: Mapping[str, Segmenter],
    rows: Dataset,
    names: Sequence[str],
    *,
    palette: Sequence[Sequence[int]] | None = None,
    window: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Add maps, the IoU of each class and, with a student, where the two differ; returns the numbers.

    Args:
        report: what is added to.
        folder: that of the report, in which the maps are drawn.
        measured: the numbers of each model by its role, as `measure_segmenters` gives them.
        distributions: of the pixels, by role.
        found: how the models differ at the pixels; None without a student.
        models: teacher and student by role.
        rows: samples with `image` and `labels` (the mask).
        names: the classes.
        palette, window: as in `draw_segmentation`.
        device: where to compute.
    """
    report.section("Maps")
    student = models.get("student")
    draw_segmentation(
        folder / "maps.png", rows, student or models["teacher"], names, window=window, palette=palette,
        teacher=models["teacher"] if student else None,
    )  # fmt: skip
    report.picture(
        folder / "maps.png", "Images, masks, the answers, and where they are wrong or differ.",
        f"Rows of images with their masks and the answers of {' and '.join(models)}.",
    )  # fmt: skip
    keys = {"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy", "agreement": "agreement with the teacher"}
    rows_of = [
        [text, *(each.get(key) for each in measured.values())]
        for key, text in keys.items()
        if any(key in each for each in measured.values())
    ]
    report.table("All labelled pixels", ["measure", *measured], rows_of)
    iou = [[name, *(_percent(each["iou"][name]) for each in measured.values())] for name in names]
    report.table("Intersection over union by class", ["class", *(f"{role}, %" for role in measured)], iou)
    numbers = {"measured": {role: dict(each) for role, each in measured.items()}}
    if found is None:
        return numbers
    numbers["agreement"] = found.numbers()
    numbers["predictions"] = {role: each.numbers() for role, each in distributions.items()}
    report.section("What the student did not learn")
    summarise(report, numbers, "pixels")
    report.figure(
        "agreement", draw_agreement(found, names),
        "The classes with the lowest agreement, and who is right.",
        "Horizontal bars, one for each class: the shares of its pixels for which both, one or none is right.",
    )  # fmt: skip
    report.table(*by_class(found, names, "pixels"))
    pairs = [[names[a], names[b], count] for a, b, count in found.disagreements()]
    if pairs:
        report.table("What they say where they differ", ["teacher", "student", "pixels"], pairs, words=["student"])
    numbers["correlations"] = correlations(report, found, "pixels")
    report.figure(
        "calibration-of-both", draw_calibration(dict(distributions)),
        "How often predictions of each confidence are right: below the dotted line a model is too sure.",
        "A calibration diagram of teacher and student beside a histogram of their confidence.",
    )  # fmt: skip
    some = spread(rows, FEATURE_ROWS)
    show_features(
        report, partial(pixel_features, models, some, most=FEATURE_POINTS, window=window, device=device), names,
        unit="pixels", palette=palette_of(len(names)) if palette is None else np.asarray(palette),
    )  # fmt: skip
    some = spread(rows, DAMAGED_ROWS)
    numbers["robustness"] = pixel_robustness(models, some, window=window, device=device)
    report.figure(
        "robustness", draw_robustness(numbers["robustness"], "mean IoU, %"),
        f"Damaged images: noise, blur, JPEG and contrast, of {len(some)} rows.",
        "Four panels with a curve for teacher and student over the strength of the damage.",
    )  # fmt: skip
    return numbers


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
