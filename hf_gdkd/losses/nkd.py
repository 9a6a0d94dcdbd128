"""NKD: the label's probability, and the normalized distribution of the other classes (Yang et al., 2023)."""

import torch
from torch import Tensor

from . import partition as partitions
from .base import DistillationLoss, positive, weight


class NKDLoss(DistillationLoss):
    """Teaches the label's probability by the teacher's, and the distribution of the other classes among themselves.

    The loss is `target` + gamma * `non_target`. Both are cross-entropies, so they are not 0 where student and teacher
    agree: `target` is -p log q for the label's probabilities p and q at temperature 1; `non_target` is T**2 times the
    cross-entropy of the softmaxes over T of the other C-1 classes. A soft label (mixup, CutMix) counts as its largest
    class. Published weight: 1.

    Args:
        temperature: T > 0, of `non_target` only.
        gamma: weight of `non_target`. Published with T: 1.5 with T 1 (ImageNet, CNNs), 1 with 1 (ImageNet,
            transformers), 3.5 with 3 (CIFAR-100).
        dim: the dimension of the classes, in the logits.
        reduction: "mean", "sum" or "none" over the samples.

    Reference:
        Yang, Zeng, Li, Zhang, Yuan and Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
        Approach with Normalized Loss and Customized Soft Labels", ICCV 2023, arXiv 2303.13005.

    Example:
        >>> student, teacher = torch.randn(2, 8, 100)
        >>> sorted(NKDLoss().parts(student, teacher, torch.randint(100, (8,))))
        ['non_target', 'target']
    """

    needs_labels = True

    def __init__(self, *, temperature: float = 1.0, gamma: float = 1.5, dim: int = -1, reduction: str = "mean") -> None:
        super().__init__(dim=dim, reduction=reduction)
        self.temperature = positive("temperature", temperature)
        self.weights = {"target": 1.0, "non_target": weight("gamma", gamma)}

    @property
    def takes_soft_labels(self) -> bool:
        return self.gradient_scaling is None

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        if labels is not None and labels.is_floating_point() and labels.shape == student.shape:
            labels = labels.argmax(-1)
        (label,) = partitions.target(labels, teacher)
        p, log_q = teacher.softmax(-1).gather(-1, label), student.log_softmax(-1).gather(-1, label)
        others = [logits.scatter(-1, label, -torch.inf) / self.temperature for logits in (teacher, student)]
        non_target = self.temperature**2 * _cross_entropy(*others)
        return {"target": -(p * log_q).squeeze(-1), "non_target": non_target}


def _cross_entropy(teacher: Tensor, student: Tensor) -> Tensor:
    """Of the softmaxes of logits [..., C]: [...]; 0 where no class of the teacher is finite."""
    out = torch.isneginf(teacher)
    p = teacher.softmax(-1).masked_fill(out, 0)
    return -(p * student.log_softmax(-1).masked_fill(out, 0)).sum(-1)
