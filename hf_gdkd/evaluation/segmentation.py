"""Metrics of semantic segmentation, from a confusion matrix that is summed batch by batch: no prediction is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import EvalPrediction

from ..data.masks import IGNORE
from ..errors import InputError
from ..training.label_maps import logits_at


def predicted_classes(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The class of every pixel (N, H, W), int64, of logits (N, C, h, w) that are resized to `size` (H, W).

    One image is resized at a time: more than one image's logits at full size are never held.
    """
    return torch.cat([logits_at(each[None], tuple(size)).argmax(1) for each in logits])


def pixel_counts(predicted: Tensor, labels: Tensor, num_classes: int, ignore_index: int = IGNORE) -> Tensor:
    """Count pixels by true class (row) and predicted class (column): (N, C, C), int64, a matrix for each of N images.

    Args:
        predicted, labels: class ids (N, ...) on one device; pixels whose label is `ignore_index` are left out.
        num_classes: C.

    Raises:
        InputError: another id than 0 to C - 1.
    """
    if predicted.shape != labels.shape:
        raise InputError(
            f"predictions are {tuple(predicted.shape)} and masks {tuple(labels.shape)}: resize them first."
        )
    valid = labels != ignore_index
    images = torch.arange(len(labels), device=labels.device).view(-1, *[1] * (labels.ndim - 1)).expand_as(labels)[valid]
    predicted, labels, shape = predicted[valid].long(), labels[valid].long(), (len(labels), num_classes, num_classes)
    for what, ids in (("mask", labels), ("prediction", predicted)):
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < num_classes:
            wrong = ids[(ids < 0) | (ids >= num_classes)].unique().tolist()
            raise InputError(
                f"a {what} holds the class ids {', '.join(map(str, wrong[:5]))}, expected 0 to {num_classes - 1} or "
                f"{ignore_index} (ignored): correct the masks, or the list of classes."
            )
    cells = (images * num_classes + labels) * num_classes + predicted
    return torch.bincount(cells, minlength=math.prod(shape)).view(shape)


class ConfusionMatrix:
    """Pixels by true class (row) and predicted class (column), int64, on one device; memory C * C, however many images.

    Examples:
        >>> import torch
        >>> from hf_gdkd.evaluation import ConfusionMatrix, segmentation_metrics
        >>> confusion = ConfusionMatrix(3)
        >>> confusion.add(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 0], [1, 255]]))
        >>> confusion.total().tolist()
        [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
        >>> segmentation_metrics(confusion.total())["mean_iou"]
        0.5

    Args:
        num_classes: C.
        device: where it counts.
        ignore_index: the label of pixels that are left out.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu", ignore_index: int = IGNORE) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self.ignore_index = ignore_index

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Count class ids of the same shape; errors as `pixel_counts`'s."""
        device = self.counts.device
        predicted, labels = predicted.to(device).flatten(), labels.to(device).flatten()
        self.counts += pixel_counts(predicted[None], labels[None], len(self.counts), self.ignore_index)[0]

    def total(self) -> Tensor:
        """The counts (C, C) of all processes, which must call this together where torch.distributed is initialized."""
        total = self.counts.clone()
        if dist.is_initialized():
            dist.all_reduce(total)
        return total.cpu()


def segmentation_metrics(counts: Tensor, label_names: Sequence[str] | None = None) -> dict[str, Any]:
    """What a confusion matrix (C, C; row: true class) says.

    `mean_iou` is the mean of the intersection over union of the classes that occur in the masks or the predictions,
    `pixel_accuracy` the share of pixels that are right, `absent_classes` the number of classes that occur in neither
    and are not averaged, and `iou` the value of every class by its name, None where it is absent. All are NaN, or
    None, where no pixel was counted.
    """
    counts = counts.double()
    right, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    iou, present = right / union, union > 0
    names = [str(i) for i in range(len(counts))] if label_names is None else label_names
    return {
        "mean_iou": float(iou[present].mean()),
        "pixel_accuracy": float(right.sum() / counts.sum()),
        "absent_classes": int((~present).sum()),
        "iou": {name: float(value) if there else None for name, value, there in zip(names, iou, present, strict=True)},
    }


class SegmentationMetrics:
    """`compute_metrics` and `preprocess_logits_for_metrics` of a Trainer with `batch_eval_metrics=True`.

    Of each batch the Trainer then keeps a confusion matrix an image, which is summed here; no logits, no predictions.
    The metrics are `mean_iou` and `pixel_accuracy`.

    Args:
        num_classes: C.
        ignore_index: the label of pixels that are left out.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORE) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self._sum: Tensor | None = None

    def preprocess(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The confusion matrix of each image (N, C, C), of logits (N, C, h, w) and labels (N, H, W)."""
        predicted = predicted_classes(logits, labels.shape[-2:])
        return pixel_counts(predicted, labels, self.num_classes, self.ignore_index)

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Add a batch of what `preprocess` made; the metrics of all since the last result if `compute_result`."""
        counts = torch.as_tensor(prediction.predictions).sum(0).cpu()
        self._sum = counts if self._sum is None else self._sum + counts
        if not compute_result:
            return {}
        metrics, self._sum = segmentation_metrics(self._sum), None
        return {key: metrics[key] for key in ("mean_iou", "pixel_accuracy")}
