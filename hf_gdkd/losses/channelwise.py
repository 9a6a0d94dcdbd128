"""Channel-wise distillation of maps (Shu et al., 2021): where each channel is strong, on logits or on features."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from .base import DistillationLoss, positive
from .features import Features, StageLoss, paired
from .kd import kl_divergence


class CWDLoss(DistillationLoss):
    """Makes each class's logits strong in the same places: KL of the softmax over the positions, a mean over classes.

    T**2 / C * sum over c of KL(softmax(teacher_c / T) || softmax(student_c / T)), the softmax over the H * W positions
    of one channel: one value an image, in nats. No pixel is left out, so labels have no part in it. Published weight
    for logits: 3 (Cityscapes).

    Args:
        temperature: T > 0.
        dim: the dimension of the classes, in the logits: 1 for maps (N, C, H, W).
        reduction: "mean", "sum" or "none" over the images.

    Reference:
        Shu, Liu, Gao, Yan and Shen, "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv
        2011.13256, Eq. 3 and 4.

    Example:
        >>> import torch
        >>> student, teacher = torch.randn(2, 2, 19, 8, 16)
        >>> CWDLoss(dim=1)(student, teacher).shape
        torch.Size([])
    """

    scales_gradients = False

    def __init__(self, *, temperature: float = 4.0, dim: int = -1, reduction: str = "mean") -> None:
        super().__init__(dim=dim, reduction=reduction)
        self.temperature = positive("temperature", temperature)
        self.weights = {"cwd": 1.0}

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        if student.ndim != 4:
            raise InputError(
                f"cwd compares maps, logits (N, C, H, W), and these have {student.ndim} dimensions: choose a loss on "
                "the classes of whole images."
            )
        return {"cwd": channelwise_kl(student.movedim(-1, 1), teacher.movedim(-1, 1), self.temperature)}


class CWDFeaturesLoss(StageLoss):
    """Makes the channels of the student's last stage strong where the teacher's are: `CWDLoss` on features.

    The student's map goes through a learned 1x1 convolution without bias where the numbers of channels differ, and the
    teacher's map becomes as large as the student's, bilinearly. Published weight: 50.

    Args:
        temperature: T > 0.
        student_layers, teacher_layers, reduction: see `StageLoss`; the last of the layers is compared.

    Reference:
        As `CWDLoss`; the convolution and the weight are those of github.com/winycg/CIRKD, losses/cwd.py.

    Example:
        >>> import torch
        >>> student = Features([torch.randn(4, 8, 6, 6)], None)
        >>> teacher = Features([torch.randn(4, 12, 6, 6)], None)
        >>> loss = CWDFeaturesLoss()
        >>> loss.build(student, teacher)
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    part = "cwd_features"

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(student_layers=student_layers, teacher_layers=teacher_layers, reduction=reduction)
        self.temperature = positive("temperature", temperature)

    def build(self, student: Features, teacher: Features) -> None:
        own, target = (x.shape[1] for x in paired(student, teacher)[-1])
        self.projection = nn.Identity() if own == target else nn.Conv2d(own, target, 1, bias=False)

    def compute(self, student: Features, teacher: Features, labels: Tensor | None) -> dict[str, Tensor]:
        own, target = paired(student, teacher)[-1]
        if own.shape[2:] != target.shape[2:]:
            target = F.interpolate(target, size=own.shape[2:], mode="bilinear", align_corners=False)
        return {"cwd_features": channelwise_kl(self.projection(own), target, self.temperature)}


def channelwise_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T**2 * KL(teacher || student) over the positions of maps [N, C, H, W], mean over the channels: [N]."""
    log_q, log_p = ((x / temperature).flatten(2).log_softmax(-1) for x in (student, teacher))
    return temperature**2 * kl_divergence(log_p, log_q).mean(-1)
