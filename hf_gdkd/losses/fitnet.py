"""FitNets: a stage of the student resembles one of the teacher, through a learned convolution."""

from collections.abc import Sequence

from torch import Tensor, nn

from .base import one_of
from .features import Features, StageLoss, paired, same_size

STAGES = ("middle", "last", "all")


class FitNetLoss(StageLoss):
    """Makes the student's middle stage, through a learned 1x1 convolution, resemble the teacher's (FitNets).

    The one part is the mean squared difference; of several stages, the mean of theirs. Maps [N, C, H, W] of different
    sizes are averaged down to the smaller. Published weight: 100. The convolution is all that is learned; the paper
    puts the teacher's non-linearity behind it, and the benchmark code that the weight is from, batch normalisation and
    a ReLU.

    Args:
        student_layers: modules of the student that take the place of its stages, by name, from shallow to deep.
        teacher_layers: likewise of the teacher.
        normalize: compare the last stages instead, the teacher's standardized: each channel has mean 0 and variance 1
            over the micro-batch. The value is then of the same scale for every teacher, and one weight suits all (30).
        stages: which are compared: "middle" (the second of three or four), "last" or "all", each through a convolution
            of its own. Unset: the middle one, with `normalize` the last.
        reduction: "mean", "sum" or "none" over the samples.

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550, Eq. 3, a mean in place of half
        the sum.

    Example:
        >>> import torch
        >>> student = Features([torch.randn(4, 8, 6, 6)], torch.randn(4, 16))
        >>> teacher = Features([torch.randn(4, 12, 6, 6)], torch.randn(4, 24))
        >>> loss = FitNetLoss()
        >>> loss.build(student, teacher)
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    part = "fitnet"

    def __init__(
        self,
        *,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        normalize: bool = False,
        stages: str | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(student_layers=student_layers, teacher_layers=teacher_layers, reduction=reduction)
        self.normalize, self.stages = normalize, stages and one_of("stages", stages, STAGES)

    def build(self, student: Features, teacher: Features) -> None:
        pairs = self.pairs(student, teacher)
        self.regressors = nn.ModuleList(nn.Conv2d(hint.shape[1], target.shape[1], 1) for hint, target in pairs)

    def compute(self, student: Features, teacher: Features, labels: Tensor | None) -> dict[str, Tensor]:
        pairs = zip(self.regressors, self.pairs(student, teacher), strict=True)
        gaps = [self.gap(regressor(hint), target) for regressor, (hint, target) in pairs]
        return {"fitnet": sum(gaps) / len(gaps)}

    def gap(self, hint: Tensor, target: Tensor) -> Tensor:
        """The mean squared difference of maps [N, C, H, W] of any size: [N]."""
        hint, target = same_size(hint, target)
        if self.normalize:
            mean, variance = target.mean((0, 2, 3), keepdim=True), target.var((0, 2, 3), correction=0, keepdim=True)
            target = (target - mean) / (variance + 1e-5).sqrt()
        return (hint - target).square().mean((1, 2, 3))

    def pairs(self, student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
        """The stages that are compared, of both models."""
        pairs = paired(student, teacher)
        stages = self.stages or ("last" if self.normalize else "middle")
        if stages == "all":
            return pairs
        return pairs[-1:] if stages == "last" else [pairs[(len(pairs) - 1) // 2]]
