"""ReviewKD: each stage of the teacher is learned by that of the student and all deeper ones (Chen et al., 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .features import Features, StageLoss, paired, pooled


class ReviewKDLoss(StageLoss):
    """Fuses the student's stages from the deepest up, and makes each resemble the teacher's at several scales.

    The pooled features count as the deepest stage, [N, D, 1, 1]. Attention-based fusion (ABF) joins each stage with
    what the deeper ones handed up and brings it to the teacher's channels and size; the hierarchical context loss
    (HCL) compares the two. Published weight: 1 (0.6 to 8 by pair), growing over 20 epochs on CIFAR-100, 1 on ImageNet.
    The batch normalisation in the fusion is over one process's micro-batch.

    Arguments: see `StageLoss`.

    Reference:
        Chen, Liu, Zhao and Jia, "Distilling Knowledge via Knowledge Review", arXiv 2104.09044.

    Example:
        >>> student = Features([torch.randn(4, 8, 6, 6)], torch.randn(4, 16))
        >>> teacher = Features([torch.randn(4, 12, 6, 6)], torch.randn(4, 24))
        >>> loss = ReviewKDLoss()
        >>> loss.build(student, teacher)
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    part = "reviewkd"

    def build(self, student: Features, teacher: Features) -> None:
        levels = _levels(student, teacher)
        middle = min(512, student.pooled.shape[1])
        self.fusions = nn.ModuleList(ABF(s.shape[1], middle, t.shape[1], fuse=i > 0) for i, (s, t) in enumerate(levels))

    def compute(self, student: Features, teacher: Features, labels: Tensor | None) -> dict[str, Tensor]:
        self.train(len(student.pooled) > 1)  # one sample has no statistics of its own: it takes the running ones
        deeper, total = None, 0.0
        for fusion, (stage, target) in zip(self.fusions, _levels(student, teacher), strict=True):
            fused, deeper = fusion(stage, deeper, target.shape[2:])
            total = total + hcl(fused, target)
        return {"reviewkd": total}


class ABF(nn.Module):
    """Attention-based fusion of a stage with what the deeper stages handed up.

    Args:
        channels: of the stage.
        middle: channels of what is handed up.
        out: channels of the teacher's stage.
        fuse: False for the deepest stage, below which there is nothing.
    """

    def __init__(self, channels: int, middle: int, out: int, *, fuse: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.attend = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuse else None
        self.expand = nn.Sequential(nn.Conv2d(middle, out, 3, padding=1, bias=False), nn.BatchNorm2d(out))
        for conv in (self.reduce[0], self.expand[0]):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, stage: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A stage [N, C, H, W], what came up [N, middle, h, w] -> [N, out, *size], what goes up [N, middle, *size]."""
        x = self.reduce(stage)
        if self.attend is not None:
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            own, other = self.attend(torch.cat((x, deeper), 1)).split(1, 1)
            x = own * x + other * deeper
        x = F.interpolate(x, tuple(size), mode="nearest")
        return self.expand(x), x


def hcl(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss of maps [N, C, H, W]: [N].

    The mean squared difference, plus 1/2, 1/4 and 1/8 of that of the maps averaged down to 4 x 4, 2 x 2 and 1 x 1 (of
    those that are smaller than the map), over the sum of these weights.
    """
    scales = [size for size in (4, 2, 1) if size < min(student.shape[2:])]
    pyramid = [(student, teacher)]
    pyramid += [(F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)) for size in scales]
    weights = [2.0**-i for i in range(len(pyramid))]
    terms = [w * (s - t).square().mean((1, 2, 3)) for w, (s, t) in zip(weights, pyramid, strict=True)]
    return sum(terms) / sum(weights)


def _levels(student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
    """Pairs of maps from the deepest up, beginning with the pooled features as maps of size 1 x 1."""
    deepest = tuple(x[:, :, None, None] for x in pooled(student, teacher))
    return [deepest, *reversed(paired(student, teacher))]
