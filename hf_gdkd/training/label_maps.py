"""Label maps: a class for each pixel. Which pixels count, how many there are, and the resolution of the comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.masks import IGNORE
from ..errors import InputError
from ..losses import DistillationLoss, FeatureLoss

AUXILIARY = "auxiliary heads"

Size = tuple[int, int] | None
Parts = Callable[[Tensor, Tensor, Tensor | None], dict[str, Tensor]]


def ignore_index_of(model: nn.Module) -> int:
    """The class of the pixels that a model's label maps leave out, as its config says; 255 where it says nothing."""
    config = getattr(model, "config", None)
    names = ("semantic_loss_ignore_index", "loss_ignore_index")
    return next((getattr(config, name) for name in names if isinstance(getattr(config, name, None), int)), IGNORE)


def size_of_map(labels: Tensor | None) -> Size:
    """The (height, width) of label maps (N, H, W); None for labels of whole images, (N) or soft (N, C)."""
    return tuple(labels.shape[1:]) if labels is not None and labels.ndim == 3 else None


def labels_at(labels: Tensor, size: Size) -> Tensor:
    """Label maps (N, H, W) at another resolution (h, w): row i is row floor(i * H / h); nothing is interpolated."""
    if size is None or size == size_of_map(labels):
        return labels
    rows, columns = (
        torch.arange(new, device=labels.device) * old // new for new, old in zip(size, labels.shape[1:], strict=True)
    )
    return labels[:, rows.unsqueeze(1), columns]


def logits_at(logits: Tensor, size: Size) -> Tensor:
    """Logits (N, C, H, W) at another resolution (h, w), bilinearly (corners not aligned), then in float32 or wider."""
    if size is None or size == tuple(logits.shape[2:]):
        return logits
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.interpolate(wide, size=size, mode="bilinear", align_corners=False)


class StepSize:
    """How much one optimizer step averages over, in all of its micro-batches and processes: images, and labels.

    Args:
        images: of all processes.
        batches: this process's micro-batches, where their labels are maps.
        ignore_index: the class of the pixels that do not count.
        reduce: adds a number up over the processes.
    """

    def __init__(
        self,
        images: int | Tensor,
        batches: Sequence[Mapping[str, Any]] = (),
        ignore_index: int = IGNORE,
        reduce: Callable[[Tensor], Tensor] = lambda count: count,
    ) -> None:
        self.images, self._ignore_index, self._reduce = images, ignore_index, reduce
        self._maps = [labels for batch in batches if size_of_map(labels := batch.get("labels")) is not None]
        self._counts: dict[Size, Tensor] = {}

    @classmethod
    def of(cls, step: StepSize | Tensor | int | None, batch: Mapping[str, Any], images: int, ignore: int) -> StepSize:
        """A step's size from what compute_loss is passed: the number of images, or None for the batch's own size."""
        if isinstance(step, StepSize):
            return step
        return cls(images, [batch], ignore) if step is None or size_of_map(batch.get("labels")) else cls(step)

    @classmethod
    def of_batches(
        cls, batches: Sequence[Mapping[str, Any]], images: int, ignore: int, accelerator: Accelerator
    ) -> StepSize | int:
        """The size of a step of these micro-batches; where all labels are of whole images, the number of images."""
        step = cls(images, batches, ignore, partial(accelerator.reduce, reduction="sum"))
        return step if step._maps else images

    def labels(self, size: Size) -> Tensor | int:
        """The labels that count in maps brought to this resolution; the images where there are no maps.

        All processes call this for the same resolutions, in the same order.
        """
        if not self._maps or size is None:
            return self.images
        if size not in self._counts:
            counts = [(labels_at(labels, size) != self._ignore_index).sum() for labels in self._maps]
            self._counts[size] = self._reduce(torch.stack(counts).sum())
        return self._counts[size]

    def divisor(self, size: Size) -> Tensor | int:
        """What a sum over these labels is divided by: their number, or 1 where none counts."""
        count = self.labels(size)
        return count.clamp(min=1) if isinstance(count, Tensor) else count


def check_alike(logits: Tensor, labels: Tensor | None) -> None:
    """Refuse labels of whole images for logits of maps, and the other way round.

    Raises:
        InputError: they differ.
    """
    if labels is not None and (logits.ndim == 4) != (size_of_map(labels) is not None):
        raise InputError(
            f"the student's logits have shape {tuple(logits.shape)} and the labels {tuple(labels.shape)}: for classes "
            "of whole images expected (N, C) and (N), and for a class of each pixel (N, C, h, w) and (N, H, W)."
        )


def summed_ce(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORE, *, binary: bool = False, **options: Any
) -> Tensor:
    """The cross-entropy, summed over the samples, or over the pixels that count of maps.

    Args:
        logits: (N, C), or (N, C, h, w), which are resized to the resolution of the labels.
        labels: (N), soft (N, C), or maps (N, H, W).
        ignore_index: class of the pixels that do not count.
        binary: that of each class by itself, and their mean over the classes.
        **options: of `torch.nn.functional.cross_entropy`.
    """
    if binary:
        return _summed_binary_ce(logits.float(), labels, options.get("label_smoothing", 0.0))
    if (size := size_of_map(labels)) is not None:
        options["ignore_index"] = ignore_index
    return F.cross_entropy(logits_at(logits, size).float(), labels, reduction="sum", **options)


def _summed_binary_ce(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """As timm's BinaryCrossEntropy, whose mean over the samples and classes this is times the number of samples."""
    if logits.ndim != 2:
        raise InputError("binary_cross_entropy is for classes of whole images, not of pixels: leave it out.")
    classes = logits.shape[1]
    shares = labels if labels.is_floating_point() else F.one_hot(labels, classes)
    shares = shares * (1 - smoothing) + smoothing / classes
    return F.binary_cross_entropy_with_logits(logits, shares.to(logits.dtype), reduction="sum") / classes


def summed_ces(
    logits: Tensor,
    auxiliary: Sequence[tuple[Tensor, float]],
    labels: Tensor,
    ignore_index: int = IGNORE,
    **options: Any,
) -> dict[str, Tensor]:
    """`summed_ce` of the logits, as `ce`, and the weighted sum of those of auxiliary heads, where there are any."""
    found = {"ce": summed_ce(logits, labels, ignore_index, **options)}
    if auxiliary:
        ces = [weight * summed_ce(each, labels, ignore_index, **options) for each, weight in auxiliary]
        found[AUXILIARY] = sum(ces)
    return found


def summed_terms(
    loss: DistillationLoss,
    parts: Parts,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    *,
    ignore_index: int = IGNORE,
    resize: bool = False,
    only_right: bool = False,
) -> tuple[dict[str, Tensor], Size]:
    """A distillation loss's terms by name, summed over the elements that count: images, or the pixels of label maps.

    Maps of different resolution are compared at the student's, the teacher's resized bilinearly and the labels by
    nearest. A loss that couples its samples (dist, mlkd, gdkd with gamma) sees those that count alone, of all images of
    the batch; the value of a batch counts for each of them.

    Args:
        loss: the loss.
        parts: its `parts`, or what stands for it, such as that compiled.
        student: logits (N, C) or (N, C, h, w).
        teacher: logits of the same classes.
        labels: (N), soft (N, C), or maps (N, H, W) of any resolution; None: every element counts.
        ignore_index: class of the pixels that do not count.
        resize: compare at the resolution of the label maps, both logits resized bilinearly.
        only_right: elements of which the teacher's largest class is not the label add 0.

    Returns:
        The sums, and the resolution (h, w) of the pixels they are over; None: over images.

    Raises:
        InputError: `resize` without maps, or `only_right` without labels.
    """
    if isinstance(loss, FeatureLoss):
        return _sums(parts(student, teacher, labels), len(student)), None
    at = size_of_map(labels)
    if resize and at is None:
        raise InputError("resize_logits is for label maps (N, H, W), which the batch has not: leave it out.")
    if only_right and labels is None:
        raise InputError("ignore_incorrect needs labels, and the batch has none: leave it out.")
    if student.ndim == teacher.ndim == 4:
        size = at if resize else tuple(student.shape[2:])
        student, teacher = logits_at(student, size), logits_at(teacher, size)
        labels = None if at is None else labels_at(labels, size)
    size, counts = size_of_map(labels), None
    if size is not None:
        counts = labels != ignore_index
        labels = labels.masked_fill(~counts, 0)  # a class that exists; what does not count is left out below
    if only_right:
        right = teacher.argmax(1) == (labels.argmax(1) if labels.is_floating_point() else labels)
        counts = right if counts is None else right & counts
    if counts is not None and loss.couples_samples:
        student, teacher = (logits.movedim(1, -1)[counts] for logits in (student, teacher))
        if not len(student):
            return {name: student.sum() for name in loss.weights}, size
        return _sums(parts(student, teacher, labels[counts]), len(student)), size
    found = parts(student, teacher, labels)
    if counts is None:  # maps without labels: the mean over the pixels of each image
        return _sums(
            {name: part.flatten(1).mean(1) if part.ndim > 1 else part for name, part in found.items()}, len(student)
        ), None
    if any(part.shape != counts.shape for part in found.values()):  # one value an image, such as cwd's
        return _sums(found, len(student)), None
    return {name: part.where(counts, 0).sum() for name, part in found.items()}, size


def _sums(parts: Mapping[str, Tensor], elements: int) -> dict[str, Tensor]:
    """One value an element is summed; one value a batch counts for each of its elements."""
    return {name: part.sum() if part.ndim else part * elements for name, part in parts.items()}
