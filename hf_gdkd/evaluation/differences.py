"""Where a student differs from its teacher, summed up in one pass over the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

MOST_DIFFERENT = 12  # images that are kept
CASES = ("both right", "teacher alone right", "student alone right", "both wrong")


class Difference(NamedTuple):
    """An image on which two models differ: KL(teacher || student) in nats, and what each says how surely."""

    kl: float
    row: int
    label: int | None
    teacher: int
    teacher_confidence: float
    student: int
    student_confidence: float


class Differences:
    """Sums over images of how a student differs from its teacher, at temperature 1.

    Images are grouped by label, or without labels by the teacher's class.

    >>> import torch
    >>> found = Differences(3)
    >>> teacher = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    >>> student = torch.tensor([[2.0, 0.0, 1.0], [3.0, 0.0, 0.0]])
    >>> found.add([0, 1], teacher, student, torch.tensor([0, 1]))
    >>> found.numbers()["agreement"], found.most_different[0].row
    (0.5, 1)

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes, self.most_different = num_classes, []
        square, each = (num_classes, num_classes), (num_classes,)
        shapes: dict[str, tuple[int, ...]] = {
            **{"images": (), "labelled": (), "kl": (), "agree": each, "images_of": each, "pairs": square},
            **{"cases": (len(CASES), num_classes), "sum_teacher": each, "sum_student": each},
            **{"products_teacher": square, "products_student": square},
        }
        self.sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def add(self, rows: Sequence[int], teacher: Tensor, student: Tensor, labels: Tensor | None = None) -> None:
        """Add images: their numbers, the models' logits (N, C), and labels (N) if there are any."""
        sums, logits = self.sums, {"teacher": teacher.double(), "student": student.double()}
        log_probs = {name: each.log_softmax(1) for name, each in logits.items()}
        confidence, predicted = (dict(zip(log_probs, each, strict=True)) for each in zip(*(
            each.max(1) for each in log_probs.values()), strict=True))  # fmt: skip
        probs = log_probs["teacher"].exp()
        gap = torch.where(probs > 0, probs * (log_probs["teacher"] - log_probs["student"]), 0.0).sum(1)
        agree = predicted["teacher"] == predicted["student"]
        group = predicted["teacher"] if labels is None else labels
        sums["images"] += len(rows)
        sums["kl"] += gap.sum()
        sums["images_of"] += torch.bincount(group, minlength=self.num_classes)
        sums["agree"] += torch.bincount(group[agree], minlength=self.num_classes)
        pair = predicted["teacher"] * self.num_classes + predicted["student"]
        sums["pairs"] += torch.bincount(pair, minlength=self.num_classes**2).view(self.num_classes, -1)
        for name, each in logits.items():
            sums[f"sum_{name}"] += each.sum(0)
            sums[f"products_{name}"] += each.T @ each
        if labels is not None:
            sums["labelled"] += len(rows)
            case = 2 * (predicted["teacher"] != labels).long() + (predicted["student"] != labels).long()
            counts = torch.bincount(case * self.num_classes + labels, minlength=len(CASES) * self.num_classes)
            sums["cases"] += counts.view(len(CASES), -1)
        for i in gap.topk(min(MOST_DIFFERENT, len(gap))).indices.tolist():
            label = None if labels is None else int(labels[i])
            said = (f(values[name][i]) for name in logits for f, values in ((int, predicted), (_exp, confidence)))
            self.most_different.append(Difference(float(gap[i]), int(rows[i]), label, *said))
        self._keep_most()

    def _keep_most(self) -> None:
        self.most_different = sorted(self.most_different, key=lambda each: (-each.kl, each.row))[:MOST_DIFFERENT]

    def gather(self, device: torch.device | str = "cpu") -> None:
        """Add up what the processes of torch.distributed have seen, each its own images."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            for name, values in self.sums.items():
                dist.all_reduce(whole := values.to(device))
                self.sums[name] = whole.cpu()
            dist.all_gather_object(every := [None] * dist.get_world_size(), self.most_different)
            self.most_different = [each for part in every for each in part]
            self._keep_most()

    def correlations(self, model: str) -> np.ndarray:
        """Pearson correlation (C, C) of the logits of classes over the images; `model` is "teacher" or "student"."""
        mean = self.sums[f"sum_{model}"] / self.sums["images"]
        covariance = self.sums[f"products_{model}"] / self.sums["images"] - mean[:, None] * mean
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        return (covariance / (deviation[:, None] * deviation)).numpy()

    def agreement_of(self) -> np.ndarray:
        """Share of each class's images on which the models agree (C); NaN without images."""
        counts = self.sums["images_of"].numpy()
        return np.divide(self.sums["agree"].numpy(), counts, np.full(len(counts), np.nan), where=counts > 0)

    def numbers(self) -> dict[str, Any]:
        """Agreement (share), mean KL(teacher || student) in nats, and with labels the share of each of `CASES`."""
        images = self.sums["images"]
        found = {"agreement": float(self.sums["agree"].sum() / images), "kl": float(self.sums["kl"] / images)}
        if self.sums["labelled"]:
            found["cases"] = dict(zip(CASES, (self.sums["cases"].sum(1) / images).tolist(), strict=True))
        return found

    def disagreements(self, most: int = 30) -> list[tuple[int, int, int]]:
        """The teacher's class, the student's, and how many images, of the pairs that differ most often."""
        counts = self.sums["pairs"].numpy().copy()
        np.fill_diagonal(counts, 0)
        order = np.argsort(-counts, axis=None, kind="stable")[:most]
        pairs = zip(*np.unravel_index(order, counts.shape), strict=True)
        return [(int(a), int(b), int(counts[a, b])) for a, b in pairs if counts[a, b] > 0]


def _exp(value: Tensor) -> float:
    return float(value.exp())
