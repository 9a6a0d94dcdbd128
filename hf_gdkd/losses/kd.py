"""Knowledge distillation (Hinton et al., 2015), and the standardization of logits (Sun et al., 2024)."""

import torch
from torch import Tensor

from .base import DistillationLoss, one_of, positive


class KDLoss(DistillationLoss):
    """Teaches the softened distribution: T**2 * KL(softmax(teacher / T) || softmax(student / T)), in nats.

    Its one part is `kd`.

    Args:
        temperature: T > 0.
        standardize: "global" standardizes each sample's logits over the classes before T.
        dim: the dimension of the classes, in the logits.
        reduction: "mean", "sum" or "none" over the samples.

    Reference:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> KDLoss(temperature=2.0)(student, teacher)
        tensor(0.1212)
    """

    def __init__(
        self, *, temperature: float = 1.0, standardize: str = "none", dim: int = -1, reduction: str = "mean"
    ) -> None:
        super().__init__(dim=dim, reduction=reduction)
        self.temperature = positive("temperature", temperature)
        self.standardize = one_of("standardize", standardize, ("none", "global"))
        self.weights = {"kd": 1.0}

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        if self.standardize == "global":
            student, teacher = standardized(student), standardized(teacher)
        # As they came: along a moved dimension, maps take half as long again, and compiled twice the memory.
        student, teacher = student.movedim(-1, self.dim), teacher.movedim(-1, self.dim)
        return {"kd": softened_kl(student, teacher, self.temperature, self.dim)}


def softened_kl(student: Tensor, teacher: Tensor, temperature: float, dim: int = -1) -> Tensor:
    """T**2 * KL(teacher || student) of the softmax of logits over T, along their classes: [...], in nats."""
    if temperature == 1:  # saves two passes over the logits
        return kl_divergence(teacher.log_softmax(dim), student.log_softmax(dim), dim)
    student, teacher = (student / temperature).log_softmax(dim), (teacher / temperature).log_softmax(dim)
    return temperature**2 * kl_divergence(teacher, student, dim)


def kl_divergence(log_p: Tensor, log_q: Tensor, dim: int = -1) -> Tensor:
    """KL(p || q) of log-probabilities, along `dim`: [...], in nats. A term with p = 0 is 0, also when q = 0."""
    p = log_p.exp()
    return (p * torch.where(p > 0, log_p - log_q, 0)).sum(dim)


def unit_variance(logits: Tensor, dim: int, epsilon: float) -> Tensor:
    """(z - mean) / sqrt(variance + epsilon) along `dim`, of the population; minus infinity takes no part and stays."""
    centred, std = centred_and_std(logits, dim, epsilon)
    return (centred / std).masked_fill(torch.isneginf(logits), -torch.inf)


def centred_and_std(logits: Tensor, dim: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """z - mean along `dim`, 0 at minus infinity, and sqrt(variance + epsilon), of the population that is finite."""
    masked = torch.isneginf(logits)
    n = (~masked).sum(dim, keepdim=True, dtype=logits.dtype)
    centred = (logits - logits.masked_fill(masked, 0).sum(dim, keepdim=True) / n).masked_fill(masked, 0)
    return centred, (centred.square().sum(dim, keepdim=True) / n + epsilon).sqrt()


def standardized(logits: Tensor, excluded: Tensor | None = None, *, correction: int = 1) -> Tensor:
    """(z - mean) / (1e-7 + std) over the last dimension.

    Minus infinity takes no part and stays. Beware of constant logits, such as those of a head that starts at zero: the
    gradient is then up to 1e7.

    Args:
        logits: [..., C].
        excluded: [..., C] bool: classes that take no part; they become 0.
        correction: 1 for the sample standard deviation (n - 1), 0 for the population's (n).

    Reference:
        Sun et al., "Logit Standardization in Knowledge Distillation", arXiv 2403.01993.
    """
    masked = torch.isneginf(logits)
    excluded = masked if excluded is None else excluded | masked
    n = (~excluded).sum(-1, keepdim=True, dtype=logits.dtype)
    mean = logits.masked_fill(excluded, 0).sum(-1, keepdim=True) / n.clamp(min=1)
    centred = (logits - mean).masked_fill(excluded, 0)
    std = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / (n - correction).clamp(min=1).sqrt()
    return (centred / (1e-7 + std)).masked_fill(masked, -torch.inf)
