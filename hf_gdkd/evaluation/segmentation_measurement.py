"""How good, how large and how fast segmenters are on a data set, and how often a student agrees with its teachers.

Where torch.distributed is initialized, all processes must call these functions together: each computes its share of
the images, and every process gets the numbers of all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Samples
from tqdm.auto import tqdm

from ..data.masks import IGNORE
from ..data.opened import Opened
from ..data.segmentation_views import SegmentationEvalTransform, SegmentationView
from ..errors import InputError
from ..training.dataloader_workers import default_workers
from ..training.label_maps import logits_at
from ..training.teacher import Teacher, logits_of, mean_prediction
from .measurement import size_of
from .segmentation import ConfusionMatrix, predicted_classes, segmentation_metrics

STRIDE = 2 / 3  # of a window's side, from one window to the next


@dataclass
class Segmenter:
    """A model, how it sees an image, and the index (C,) of its class for each of the data set's; None: the same."""

    model: nn.Module
    view: SegmentationView
    columns: Tensor | None = None

    @classmethod
    def of(cls, teacher: Teacher) -> Segmenter:
        return cls(teacher.model, teacher.view, teacher.columns)

    def logits(self, pixels: Tensor, window: int | None) -> Tensor:
        """Logits (N, C, h, w) in float32 of images (N, 3, H, W) as a whole, or (N, C, H, W) from windows."""
        parameter = next(self.model.parameters(), pixels)
        pixels = pixels.to(parameter.device, parameter.dtype)
        logits = (logits_of(self.model(pixels)) if window is None else slide(self.model, pixels, window)).float()
        return logits if self.columns is None else logits[:, self.columns.to(logits.device)]


def slide(model: nn.Module, pixels: Tensor, window: int) -> Tensor:
    """Logits (N, C, H, W) of images (N, 3, H, W): the mean over square windows, each two thirds of its side further.

    The last window of a row or column ends at the edge; a side that is shorter than the window is one window.
    """
    height, width = pixels.shape[-2:]
    total, times = torch.zeros((), device=pixels.device), torch.zeros(height, width, device=pixels.device)
    for area in areas(pixels, window):
        part = logits_at(logits_of(model(pixels[area])), tuple(pixels[area].shape[-2:])).float()
        if total.ndim == 0:
            total = part.new_zeros(*part.shape[:2], height, width)
        total[area] += part
        times[area] += 1
    return total.div_(times)


def areas(pixels: Tensor, window: int | None) -> Iterator[tuple[EllipsisType, slice, slice]]:
    """The windows of images (N, 3, H, W), each as an index of the images; None: the whole is one."""
    height, width = pixels.shape[-2:]
    side = max(height, width) if window is None else window
    for top in _starts(height, side):
        for left in _starts(width, side):
            yield ..., slice(top, top + side), slice(left, left + side)


def _starts(size: int, window: int) -> list[int]:
    step, last = max(1, round(window * STRIDE)), max(size - window, 0)
    return [*range(0, last, step), last]


class Seen(Samples):
    """Rows as (the pixels of every view, the mask), each in its own size."""

    def __init__(self, rows: Dataset, views: Sequence[SegmentationView]) -> None:
        self.rows, self.transforms = Opened(rows), [SegmentationEvalTransform(view) for view in views]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[list[Tensor], Tensor]:
        row = {key: [value] for key, value in self.rows[index].items()}
        seen = [transform(row) for transform in self.transforms]
        return [each["pixel_values"][0] for each in seen], torch.as_tensor(seen[0]["labels"][0])


@torch.no_grad()
def measure_segmenters(
    students: Sequence[Segmenter],
    rows: Dataset,
    label_names: Sequence[str],
    *,
    teachers: Sequence[Segmenter] = (),
    weights: Sequence[float] | None = None,
    window: int | None = None,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    workers: int | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure students and their teachers in one pass over the rows; returns the numbers of each.

    These are those of `segmentation_metrics`, parameters, flops, images_per_second, and for students with teachers
    `agreement`: the share of labelled pixels for which the student and the (mean of the) teachers predict the same
    class. Images and masks keep their size, in one scale and without flips; logits are resized bilinearly to the
    mask. No prediction outlives its batch.

    Args:
        students, teachers: models with their views; moved to `device` and set to eval mode.
        rows: samples with `image` and `labels` (the mask).
        label_names: the classes of the data set.
        weights: of the teachers' probabilities in their mean; None: equal.
        window: side in pixels of the windows that slide over each image; None: it is seen as a whole.
        batch_size: images in a forward pass, as long as they have the same size.
        device: where to compute.
        workers: processes that read and decode images; None: as many as in training.

    Raises:
        InputError: masks with ids that are no class, or no labelled pixel in the whole data set.
    """
    models = [*students, *teachers]
    for each in models:
        each.model.to(device).eval()
    views = list({id(each.view): each.view for each in models}.values())
    confusions = [ConfusionMatrix(len(label_names), device) for _ in models]
    agreeing = torch.zeros(len(students), dtype=torch.int64, device=device)
    clocks = [_Clock() for _ in models]
    for pixels, labels, counts in _batches(Seen(rows, views), batch_size, device, workers):
        by_view, logits, size = dict(zip(map(id, views), pixels, strict=True)), [], labels.shape[-2:]
        for each, clock in zip(models, clocks, strict=True):
            with clock.of(len(labels), device):
                logits.append(each.logits(by_view[id(each.view)], window))
        if not counts:
            continue
        predicted = [predicted_classes(each, size) for each in logits]
        for confusion, classes in zip(confusions, predicted, strict=True):
            confusion.add(classes, labels)
        if teachers:
            taught = mean_classes(logits[len(students) :], size, weights) if len(teachers) > 1 else predicted[-1]
            known = labels != IGNORE
            agreeing += torch.stack([((each == taught) & known).sum() for each in predicted[: len(students)]])
    if dist.is_initialized():
        dist.all_reduce(agreeing)
    numbers = []
    for each, confusion, clock in zip(models, confusions, clocks, strict=True):
        found = segmentation_metrics(counts := confusion.total(), label_names)
        if not counts.any():
            raise InputError(
                "no pixel of the whole data set has a class: check its masks, and what is ignored in them."
            )
        numbers.append(found | size_of(each.model, each.view) | {"images_per_second": clock.speed()})
    if teachers:
        for found, pixels in zip(numbers, agreeing, strict=False):
            found["agreement"] = float(pixels / counts.sum())
    return numbers[: len(students)], numbers[len(students) :]


def mean_classes(logits: Sequence[Tensor], size: Sequence[int], weights: Sequence[float] | None) -> Tensor:
    """The class of every pixel (N, H, W) by the mean probability of several models' logits (N, C, h, w)."""
    answers = ([logits_at(each[None], tuple(size)) for each in image] for image in zip(*logits, strict=True))
    return torch.cat([mean_prediction(each, weights).argmax(1) for each in answers])


class _Clock:
    """Images a second of forward passes, without the first if there are several."""

    def __init__(self) -> None:
        self.passes: list[tuple[int, float]] = []

    @contextmanager
    def of(self, images: int, device: torch.device | str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        self.passes.append((images, time.perf_counter() - start))

    def speed(self) -> float:
        images, seconds = zip(*(self.passes[1:] or self.passes), strict=True)
        return sum(images) / sum(seconds)


def _batches(
    samples: Seen, batch_size: int, device: torch.device | str, workers: int | None
) -> Iterator[tuple[list[Tensor], Tensor, bool]]:
    """This process's share: the pixels (N, 3, H, W) of every view, the masks (N, H, W), and whether they count.

    Images of a batch whose sizes differ come one at a time. All processes get equally many, because a model that is
    split over them needs all to run equally often: those that do not count were seen before.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    batches = [range(i, min(i + batch_size, len(samples))) for i in range(0, len(samples), batch_size)]
    own, steps = batches[rank::processes], math.ceil(len(batches) / processes)
    loader = DataLoader(
        samples, batch_sampler=own + batches[:1] * (steps - len(own)), collate_fn=list,
        num_workers=default_workers(samples) if workers is None else workers,
    )  # fmt: skip
    for step, batch in enumerate(tqdm(loader, desc="evaluating", leave=False, disable=rank > 0 or None)):
        shapes = {(*(each.shape for each in pixels), labels.shape) for pixels, labels in batch}
        groups = [batch] if len(shapes) == 1 else [[each] for each in batch]
        runs = torch.tensor(len(groups), device=device)
        if processes > 1:
            dist.all_reduce(runs, dist.ReduceOp.MAX)
        for i in range(int(runs)):
            pixels, labels = zip(*groups[min(i, len(groups) - 1)], strict=True)
            stacked = [torch.stack(each).to(device) for each in zip(*pixels, strict=True)]
            yield stacked, torch.stack(labels).to(device), step < len(own) and i < len(groups)
