"""TTM and WTTM: the teacher's distribution is softened, the student's is not (Zheng and Yang, 2024)."""

from torch import Tensor

from .base import DistillationLoss, positive
from .kd import kl_divergence


class TTMLoss(DistillationLoss):
    """Teaches the teacher's softened distribution to the student's own: KL(softmax(teacher / T) || softmax(student)).

    It is plain KD without the student's temperature, and without T**2: the weight takes its place.

    Args:
        temperature: T > 0, of the teacher alone: one over the exponent of the power transform of the paper. Published
            with the weight: 10 with 45 (CIFAR-100, VGG13 to VGG8).
        dim: the dimension of the classes, in the logits.
        reduction: "mean", "sum" or "none" over the samples.

    Reference:
        Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, arXiv 2402.11148.

    Example:
        >>> import torch
        >>> student, teacher = torch.randn(2, 8, 100)
        >>> TTMLoss(temperature=2.0)(student, teacher).shape
        torch.Size([])
    """

    part = "ttm"

    def __init__(self, *, temperature: float = 10.0, dim: int = -1, reduction: str = "mean") -> None:
        super().__init__(dim=dim, reduction=reduction)
        self.temperature = positive("temperature", temperature)
        self.weights = {self.part: 1.0}

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        return {self.part: kl_divergence((teacher / self.temperature).log_softmax(-1), student.log_softmax(-1))}


class WTTMLoss(TTMLoss):
    """Teaches as `TTMLoss` does, and more where the teacher is less sure: times the sum of its p ** (1 / T).

    That weight of a sample is between 1, for a teacher that is sure, and C ** (1 - 1 / T), for one that knows nothing
    (T >= 1); it is not normalized, so the weight of the whole must be smaller than that of `TTMLoss`.

    Args:
        temperature: T > 0, of the teacher alone. Published with the weight: 5 with 4 (CIFAR-100, VGG13 to VGG8, beside
            CRD).
        dim: the dimension of the classes, in the logits.
        reduction: "mean", "sum" or "none" over the samples.

    Reference:
        As `TTMLoss`.

    Example:
        >>> import torch
        >>> student, teacher = torch.randn(2, 8, 100)
        >>> WTTMLoss()(student, teacher).shape
        torch.Size([])
    """

    part = "wttm"

    def __init__(self, *, temperature: float = 5.0, dim: int = -1, reduction: str = "mean") -> None:
        super().__init__(temperature=temperature, dim=dim, reduction=reduction)

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        power_sum = (teacher.log_softmax(-1) / self.temperature).logsumexp(-1).exp()
        return {self.part: power_sum * super().compute(student, teacher, labels)[self.part]}
