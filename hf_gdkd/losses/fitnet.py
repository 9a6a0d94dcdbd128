"""FitNets: a stage of the student resembles one of the teacher, through a learned convolution."""

from collections.abc import Sequence

from torch import Tensor, nn

from .features import Features, StageLoss, paired, same_size


class FitNetLoss(StageLoss):
    """Makes the student's middle stage, through a learned 1x1 convolution, resemble the teacher's (FitNets).

    The one part is the mean squared difference. Maps [N, C, H, W] of different sizes are averaged down to the smaller.
    Published weight: 100. The convolution is all that is learned; the paper puts the teacher's non-linearity behind it,
    and the benchmark code that the weight is from, batch normalisation and a ReLU.

    Args:
        student_layers: modules of the student that take the place of its stages, by name, from shallow to deep.
        teacher_layers: likewise of the teacher.
        normalize: compare the last stages instead, the teacher's standardized: each channel has mean 0 and variance 1
            over the micro-batch. The value is then of the same scale for every teacher, and one weight suits all (30).
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
        reduction: str = "mean",
    ) -> None:
        super().__init__(student_layers=student_layers, teacher_layers=teacher_layers, reduction=reduction)
        self.normalize = normalize

    def build(self, student: Features, teacher: Features) -> None:
        hint, target = self.stage(student, teacher)
        self.regressor = nn.Conv2d(hint.shape[1], target.shape[1], 1)

    def compute(self, student: Features, teacher: Features, labels: Tensor | None) -> dict[str, Tensor]:
        hint, target = self.stage(student, teacher)
        hint, target = same_size(self.regressor(hint), target)
        if self.normalize:
            mean, variance = target.mean((0, 2, 3), keepdim=True), target.var((0, 2, 3), correction=0, keepdim=True)
            target = (target - mean) / (variance + 1e-5).sqrt()
        return {"fitnet": (hint - target).square().mean((1, 2, 3))}

    def stage(self, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
        """The last stage with `normalize`, otherwise the second of three or four."""
        pairs = paired(student, teacher)
        return pairs[-1] if self.normalize else pairs[(len(pairs) - 1) // 2]
