"""LumiNet: logits that are calibrated class by class over the batch (Hossain et al., 2025)."""

from torch import Tensor

from .base import DistillationLoss, positive, weight
from .kd import kl_divergence, unit_variance
from .relational import to_samples


class LumiNetLoss(DistillationLoss):
    """Teaches how each sample differs from the rest of the batch: KL of logits that are standardized class by class.

    Each class's logits become (z - mean) / sqrt(variance + 1e-5) over the batch, student's and teacher's apart; the
    loss is alpha**2 * KL(softmax(teacher / T) || softmax(student / T)) of the result, without T**2. Leading dimensions
    are flattened to samples. In training, the batch is one process's micro-batch; a single sample costs 0.

    Args:
        temperature: T > 0.
        alpha: its square is the weight. Published with T: 2 with 0.7 (ImageNet); 33 with 4, and 70 or 75 with 8, by
            pair (CIFAR-100), where the weight of the distillation grows over 20 epochs.
        dim: the dimension of the classes, in the logits.
        reduction: "mean", "sum" or "none" over the samples.

    Reference:
        Hossain et al., "LumiNet: Perception-Driven Knowledge Distillation via Statistical Logit Calibration", TMLR
        2025; the code is github.com/ismail31416/LumiNet.

    Example:
        >>> import torch
        >>> student, teacher = torch.randn(2, 8, 100)
        >>> LumiNetLoss(temperature=4.0, alpha=33.0)(student, teacher).shape
        torch.Size([])
    """

    def __init__(self, *, temperature: float = 0.7, alpha: float = 2.0, dim: int = -1, reduction: str = "mean") -> None:
        super().__init__(dim=dim, reduction=reduction)
        self.temperature = positive("temperature", temperature)
        self.weights = {"luminet": weight("alpha", alpha) ** 2}

    @property
    def couples_samples(self) -> bool:
        return True

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        q, p = ((unit_variance(to_samples(x), 0, 1e-5) / self.temperature).log_softmax(-1) for x in (student, teacher))
        return {"luminet": kl_divergence(p, q).view(student.shape[:-1])}
