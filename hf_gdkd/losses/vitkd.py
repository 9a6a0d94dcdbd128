"""ViTKD: shallow blocks are imitated, the last one is completed from some of its tokens (Yang et al., 2022)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError
from .base import weight
from .features import FeatureLoss, Features, paired


class ViTKDLoss(FeatureLoss):
    """Makes a vision transformer's first two blocks imitate the teacher's, and some of its last tokens tell the others.

    The loss is alpha * `mimic` + beta * `generate`. `mimic` is the sum of squared differences of the tokens after the
    first two blocks, the student's through a learned linear layer where the widths differ. For `generate` a share of
    the student's last tokens, after the final normalization, gives way to one learned token; two learned 3x3
    convolutions complete the map, and the sum of squared differences to the teacher's is taken where tokens were
    missing, over that share. Which they are is drawn anew for each sample of each step.

    Both models need the same grid of tokens; those of the class do not take part. The published weights are for sums
    over 196 tokens of 384 to 1024 numbers. In training, the tokens that a micro-batch hides depend on how the step is
    split.

    Args:
        alpha: weight of `mimic`.
        beta: weight of `generate`.
        mask_ratio: the share of the tokens that is hidden, above 0 and below 1.
        student_layers: modules of the student whose outputs are compared, by name: the last is completed, those before
            it are imitated. Unset: the first two blocks and the final normalization.
        teacher_layers: likewise of the teacher.
        reduction: "mean", "sum" or "none" over the samples.

    Reference:
        Yang, Li, Zeng, Li, Yuan and Li, "ViTKD: Practical Guidelines for ViT Feature Knowledge Distillation", arXiv
        2209.02432; the defaults are for ImageNet, with or without NKD beside it.

    Example:
        >>> student = Features([torch.randn(4, 8, 6, 6) for _ in range(3)], None)
        >>> teacher = Features([torch.randn(4, 12, 6, 6) for _ in range(3)], None)
        >>> loss = ViTKDLoss()
        >>> loss.build(student, teacher)
        >>> sorted(loss.parts(student, teacher))
        ['generate', 'mimic']
    """

    taps = "blocks"

    def __init__(
        self,
        *,
        alpha: float = 3e-5,
        beta: float = 3e-6,
        mask_ratio: float = 0.5,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        if not 0 < mask_ratio < 1:
            raise InputError(f"mask_ratio is {mask_ratio}: expected a number above 0 and below 1.")
        self.mask_ratio, self.student_layers, self.teacher_layers = mask_ratio, student_layers, teacher_layers
        self.weights = {"mimic": weight("alpha", alpha), "generate": weight("beta", beta)}

    def build(self, student: Features, teacher: Features) -> None:
        pairs = paired(student, teacher)
        for own, target in pairs:
            if own.shape[2:] != target.shape[2:]:
                (h, w), (rows, columns) = own.shape[2:], target.shape[2:]
                raise InputError(
                    f"vitkd compares tokens one by one, and the student has {h} x {w} of them and the teacher {rows} x "
                    f"{columns}: choose models with the same number of patches, or another loss."
                )
        widths = [(own.shape[1], target.shape[1]) for own, target in pairs]
        self.align = nn.ModuleList(nn.Identity() if own == to else nn.Conv2d(own, to, 1) for own, to in widths)
        width = widths[-1][1]
        self.hidden_token = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.complete = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def compute(self, student: Features, teacher: Features, labels: Tensor | None) -> dict[str, Tensor]:
        aligned = [(align(s), t) for align, (s, t) in zip(self.align, paired(student, teacher), strict=True)]
        *shallow, (last, target) = aligned
        hidden = self._hidden(last)
        completed = self.complete(torch.where(hidden, self.hidden_token, last))
        return {
            "mimic": sum(((s - t).square().sum((1, 2, 3)) for s, t in shallow), last.new_zeros(len(last))),
            "generate": (completed - target).square().where(hidden, 0).sum((1, 2, 3)) / self.mask_ratio,
        }

    def _hidden(self, tokens: Tensor) -> Tensor:
        """Which places of maps [N, C, H, W] are hidden: [N, 1, H, W]."""
        n, _, height, width = tokens.shape
        kept = int(height * width * (1 - self.mask_ratio))
        rank = torch.rand(n, height * width, device=tokens.device).argsort(1).argsort(1)
        return (rank >= kept).view(n, 1, height, width)
