"""RLD: a teacher's logits that are refined by the labels (Sun et al., 2025)."""

import torch
from torch import Tensor

from . import partition as partitions
from .base import DistillationLoss, one_of, positive, weight
from .kd import kl_divergence, standardized
from .levels import two_level_terms


class RLDLoss(DistillationLoss):
    """Teaches the teacher's confidence, for the label, and its distribution of the classes that it ranks below that.

    The loss is alpha * `scd` + beta * `mcd`. `scd` is the KL between the teacher's probability of its own top class,
    right or wrong, and the student's of the label. `mcd` is the KL of the distributions over the classes whose logit
    is below the label's in the teacher, so that what the teacher gets wrong is not taught; 0 where there is none.
    Where the teacher is right, this is DKD.

    Args:
        temperature: T > 0, of `mcd`.
        alpha: weight of `scd`.
        beta: weight of `mcd`. Published with T: 0.5 or 2 with 1 (ImageNet), 8 with 4 (CIFAR-100).
        alpha_temperature: T > 0, of `scd`; unset: that of `mcd`.
        standardize: "global" standardizes each sample's logits over the classes before T.
        dim: the dimension of the classes, in the logits.
        reduction: "mean", "sum" or "none" over the samples.

    Reference:
        Sun et al., "Knowledge Distillation with Refined Logits", ICCV 2025, arXiv 2408.07703.

    Example:
        >>> student, teacher = torch.randn(2, 8, 100)
        >>> sorted(RLDLoss().parts(student, teacher, torch.randint(100, (8,))))
        ['mcd', 'scd']
    """

    needs_labels = True

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        alpha: float = 1.0,
        beta: float = 0.5,
        alpha_temperature: float | None = None,
        standardize: str = "none",
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(dim=dim, reduction=reduction)
        self.temperature = positive("temperature", temperature)
        unset = alpha_temperature is None
        self.alpha_temperature = self.temperature if unset else positive("alpha_temperature", alpha_temperature)
        self.weights = {"scd": weight("alpha", alpha), "mcd": weight("beta", beta)}
        self.standardize = one_of("standardize", standardize, ("none", "global"))

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        (label,) = partitions.target(labels, teacher)
        if self.standardize == "global":
            student, teacher = standardized(student), standardized(teacher)
        confidence = _against_the_rest(teacher / self.alpha_temperature, teacher.argmax(-1, keepdim=True))
        of_label = _against_the_rest(student / self.alpha_temperature, label)
        left_out = teacher >= teacher.gather(-1, label)
        _, low, _ = two_level_terms(student, teacher, left_out, self.temperature)
        return {"scd": self.alpha_temperature**2 * kl_divergence(confidence, of_label), "mcd": low[1]}


def _against_the_rest(logits: Tensor, index: Tensor) -> Tensor:
    """The log-probabilities of a class of logits [..., C], `index` [..., 1], and of all others together: [..., 2]."""
    others = logits.scatter(-1, index, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat((logits.gather(-1, index), others), -1).log_softmax(-1)
