"""Losses that compare relations over the batch: DIST (correlations) and MLKD (Gram matrices)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from .base import DistillationLoss, one_of, positive, weight
from .kd import softened_kl, standardized


class DISTLoss(DistillationLoss):
    """Makes the student's probabilities correlate with the teacher's, over each sample and over each class.

    Each part is T**2 times one minus the mean Pearson correlation.

    The loss is beta * `inter` (over the classes of each sample) + gamma * `intra` (over the samples of each
    class), one value per batch; leading dimensions are flattened to samples. In training, the batch is one process's
    micro-batch: classes are correlated over its samples only, and its value counts for as many samples as it has.

    Args:
        temperature: T > 0.
        beta: weight of the inter-class relation.
        gamma: weight of the intra-class relation.
        dim: the dimension of the classes, in the logits.
        reduction: changes nothing, the loss is one value per batch.

    Reference:
        Huang, You, Wang, Qian and Xu, "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536.

    Example:
        >>> student, teacher = torch.randn(2, 8, 100)
        >>> sorted(DISTLoss().parts(student, teacher))
        ['inter', 'intra']
    """

    per_batch = True

    def __init__(
        self, *, temperature: float = 1.0, beta: float = 2.0, gamma: float = 2.0, dim: int = -1, reduction: str = "mean"
    ) -> None:
        super().__init__(dim=dim, reduction=reduction)
        self.temperature = positive("temperature", temperature)
        self.weights = {"inter": weight("beta", beta), "intra": weight("gamma", gamma)}

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        p = (to_samples(student) / self.temperature).softmax(-1)
        q = (to_samples(teacher) / self.temperature).softmax(-1)
        scale = self.temperature**2
        return {"inter": scale * (1 - correlation(p, q, -1)), "intra": scale * (1 - correlation(p, q, 0))}


class MLKDLoss(DistillationLoss):
    """Teaches the distribution, and the Gram matrices of classes and of samples, at several temperatures.

    The loss is `kd` + `cc` + `bc`, each summed over the temperatures, one value per batch; leading dimensions
    are flattened to samples. For probabilities p [N, C], `cc` is the squared difference of p^T p over C, `bc`
    that of p p^T over N. In training, the batch is one process's micro-batch: its Gram matrices and medians are
    over its samples only, and its value counts for as many samples as it has.

    Args:
        temperatures: each > 0.
        mask_samples: samples whose confidence (largest probability of the teacher, T = 1) is above the median
            of the batch count 0 in `kd`, and as columns of `bc`.
        mask_classes: classes whose teacher probability summed over the batch (T = 1) is above the median
            count 0 as columns of `cc`.
        standardize: "global" standardizes each sample's logits over the classes before T.
        dim: the dimension of the classes, in the logits.
        reduction: changes nothing, the loss is one value per batch.

    Reference:
        Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023.

    Example:
        >>> student, teacher = torch.randn(2, 8, 100)
        >>> sorted(MLKDLoss(temperatures=(2.0, 4.0)).parts(student, teacher))
        ['bc', 'cc', 'kd']
    """

    per_batch = True

    def __init__(
        self,
        *,
        temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
        mask_samples: bool = False,
        mask_classes: bool = False,
        standardize: str = "none",
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(dim=dim, reduction=reduction)
        if not temperatures:
            raise InputError("temperatures is empty: use at least one.")
        self.temperatures = tuple(positive("temperatures", temperature) for temperature in temperatures)
        self.mask_samples, self.mask_classes = mask_samples, mask_classes
        self.standardize = one_of("standardize", standardize, ("none", "global"))
        self.weights = {"kd": 1.0, "cc": 1.0, "bc": 1.0}

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        student, teacher = to_samples(student), to_samples(teacher)
        confidence = teacher.softmax(-1)
        samples = _up_to_median(confidence.amax(-1)) if self.mask_samples else None
        classes = _up_to_median(confidence.sum(0)) if self.mask_classes else None
        if self.standardize == "global":
            student, teacher = standardized(student), standardized(teacher)
        parts = {name: student.new_zeros(()) for name in self.weights}
        for temperature in self.temperatures:
            kd = softened_kl(student, teacher, temperature)
            p, q = (student / temperature).softmax(-1), (teacher / temperature).softmax(-1)
            parts["kd"] = parts["kd"] + (kd if samples is None else kd * samples).mean()
            parts["cc"] = parts["cc"] + _gram_difference(p, q, classes) / p.shape[1]
            parts["bc"] = parts["bc"] + _gram_difference(p.T, q.T, samples) / p.shape[0]
        return parts


def to_samples(logits: Tensor) -> Tensor:
    """[..., C] as [N, C]."""
    return logits.reshape(-1, logits.shape[-1])


def correlation(p: Tensor, q: Tensor, dim: int) -> Tensor:
    """Mean Pearson correlation of p and q [N, C] along `dim`; 1e-8 is added to the product of the norms."""
    p, q = p - p.mean(dim, keepdim=True), q - q.mean(dim, keepdim=True)
    norms = torch.linalg.vector_norm(p, dim=dim) * torch.linalg.vector_norm(q, dim=dim)
    return ((p * q).sum(dim) / (norms + 1e-8)).mean()


def _up_to_median(values: Tensor) -> Tensor:
    """1.0 where a value is at most the median, else 0.0."""
    return (values <= values.median()).to(values.dtype)


def _gram_difference(p: Tensor, q: Tensor, columns: Tensor | None = None) -> Tensor:
    """Squared Frobenius norm of p^T p - q^T q for [n, m], of the columns [m] that weigh 1 when given.

    With d = p - q and a = (p + q) / 2 the matrix is d^T a + a^T d; for n < m its norm is taken from products
    of size n x n, without the cancellation of squaring the two Gram matrices apart.
    """
    d, a = p - q, (p + q) / 2
    d_kept, a_kept = (d, a) if columns is None else (d * columns, a * columns)
    if p.shape[0] >= p.shape[1]:
        return (d.T @ a_kept + a.T @ d_kept).square().sum()
    squares = (d @ d.T) * (a_kept @ a_kept.T) + (a @ a.T) * (d_kept @ d_kept.T)
    return (squares + 2 * (d @ a.T) * (a_kept @ d_kept.T)).sum()
