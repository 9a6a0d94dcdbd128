"""Spherical KD: logits on a sphere, so that only their direction is taught (Guo et al., 2020)."""

from torch import Tensor

from .base import DistillationLoss, positive
from .kd import centred_and_std, softened_kl, unit_variance

EPSILON = 1e-7  # under the root, as published


class SKDLoss(DistillationLoss):
    """Teaches the direction of the teacher's logits, not their size: plain KD of logits of one standard deviation.

    Each sample's logits, student's and teacher's, become m * (z - mean) / sqrt(variance + 1e-7) over the classes; the
    loss is T**2 * KL(softmax(teacher / T) || softmax(student / T)) of the result. So the student is free to be less
    sure than its teacher. The published total is 0.1 of a cross-entropy and 0.9 of this; that cross-entropy is of the
    student's `rescaled` logits, where training here takes the logits as they are.

    Args:
        temperature: T > 0.
        multiplier: m > 0. Unset: the standard deviation of the teacher's logits, sample by sample, as in the authors'
            training code; they publish 2 as a number (2 to 3).
        dim: the dimension of the classes, in the logits.
        reduction: "mean", "sum" or "none" over the samples.

    Reference:
        Guo et al., "Reducing the Teacher-Student Gap via Spherical Knowledge Distillation", arXiv 2010.07485; the
        weights are those of PaddleClas, which trains with multiplier 2 and T 1 (ImageNet).

    Example:
        >>> import torch
        >>> student, teacher = torch.randn(2, 8, 100)
        >>> loss = SKDLoss(multiplier=2.0)
        >>> torch.allclose(loss(3 * student, teacher), loss(student, teacher), rtol=1e-4)
        True
    """

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        multiplier: float | None = None,
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(dim=dim, reduction=reduction)
        self.temperature = positive("temperature", temperature)
        self.multiplier = None if multiplier is None else positive("multiplier", multiplier)
        self.weights = {"skd": 1.0}

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        return {"skd": softened_kl(*self.rescaled(student, teacher), self.temperature)}

    def rescaled(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The logits [..., C] of both that are compared, classes last."""
        size = self.multiplier
        if size is None:
            _, size = centred_and_std(teacher, -1, EPSILON)
        return size * unit_variance(student, -1, EPSILON), size * unit_variance(teacher, -1, EPSILON)
