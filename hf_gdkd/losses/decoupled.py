"""KL at two levels: between groups of classes, and inside each of them (GDKD, GDKD3, DKD)."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from . import partition as partitions
from .base import DistillationLoss, one_of, positive, prepare, weight
from .kd import kl_divergence, standardized

DEFAULT_K = 5


class DecoupledTerms(NamedTuple):
    """`high` [...] and `low` [..., G] in nats, times T**2; `mass` [..., G], the teacher's group masses."""

    high: Tensor
    low: Tensor
    mass: Tensor


def decoupled_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    groups: Sequence[Tensor],
    *,
    temperature: float = 1.0,
    kl: str = "forward",
) -> DecoupledTerms:
    """KL(teacher || student) between the groups and inside each of them.

    Args:
        student_logits: [..., C] float, before temperature.
        teacher_logits: [..., C], same shape; treated as constant. Minus infinity is a probability of 0; a
            group needs one class that is finite.
        groups: G-1 index tensors [..., n_g], mutually exclusive; group G is every other class.
        temperature: T > 0.
        kl: inside the groups, "forward" KL(teacher || student), "reverse" KL(student || teacher), or the mean
            of "both"; between them it is always forward, as in the paper.

    Returns:
        `high` [...], `low` [..., G] in nats, times T**2, and the teacher's group masses [..., G].
        All terms are 0 when the logits agree. A group of one class has no low-level term: 0.

    Raises:
        InputError: shapes differ, a group is empty, overlaps another or is out of range, or T <= 0.

    Reference:
        Zheng and Cheng, "Rethinking Decoupled Knowledge Distillation: A Predictive Distribution Perspective",
        arXiv 2512.04625, IEEE TNNLS 37(6), 2742-2756, 2026.
    """
    student, teacher = prepare(student_logits, teacher_logits)
    positive("temperature", temperature)
    one_of("kl", kl, ("forward", "reverse", "both"))
    if not torch.compiler.is_compiling():
        partitions.check_groups(groups, student.shape[-1])
    groups = [group.expand(*student.shape[:-1], -1) for group in groups]
    with torch.autocast(student.device.type, enabled=False):
        high, low, log_mass = _terms(student, teacher, groups, temperature, kl)
        return DecoupledTerms(high, torch.stack(low, -1), log_mass.exp())


def _terms(
    student: Tensor,
    teacher: Tensor,
    groups: Sequence[Tensor],
    temperature: float,
    kl: str = "forward",
    standardize: str = "none",
) -> tuple[Tensor, list[Tensor], Tensor]:
    """`high`, each `low`, the teacher's log-masses, of checked input; `standardize` is that of GDKDLoss."""
    if standardize == "global":
        student, teacher = standardized(student), standardized(teacher)
    student_mass, student_inside = _levels(student, groups, temperature, standardize)
    teacher_mass, teacher_inside = _levels(teacher, groups, temperature, standardize)
    high = kl_divergence(teacher_mass, student_mass)
    pairs = zip(teacher_inside, student_inside, strict=True)
    return temperature**2 * high, [temperature**2 * _divergence(t, s, kl) for t, s in pairs], teacher_mass


class _Inside(NamedTuple):
    """A distribution inside a group: softmax(logits), with their logsumexp kept beside them."""

    logits: Tensor  # [..., n], or [..., C] with the classes of other groups at minus infinity
    log_sum: Tensor  # [..., 1]

    def kl(self, other: "_Inside") -> Tensor:
        """KL(self || other), [...]. A term whose own probability is 0 is 0."""
        p = (self.logits - self.log_sum).exp()
        gap = torch.where(p > 0, self.logits - other.logits, 0)
        return (p * gap).sum(-1) - (self.log_sum - other.log_sum).squeeze(-1)


def _inside(logits: Tensor) -> _Inside:
    return _Inside(logits, logits.logsumexp(-1, keepdim=True))


def _divergence(teacher: _Inside, student: _Inside, kl: str) -> Tensor:
    if kl == "both":
        return (teacher.kl(student) + student.kl(teacher)) / 2
    return teacher.kl(student) if kl == "forward" else student.kl(teacher)


def _levels(
    logits: Tensor, groups: Sequence[Tensor], temperature: float, standardize: str
) -> tuple[Tensor, list[_Inside]]:
    """Log-masses of the groups [..., G], and the distribution inside each."""
    index = torch.cat(tuple(groups), -1)
    gathered, rest = _Split.apply(logits / temperature, index)
    inside = [_inside(top) for top in (*gathered.split([group.shape[-1] for group in groups], -1), rest)]
    between = torch.cat([group.log_sum for group in inside], -1).log_softmax(-1)
    if standardize in ("both", "other"):
        taken = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, True)
        rest = standardized(logits, taken, correction=0).masked_fill(taken, -math.inf)
        inside[-1] = _inside(rest / temperature)
    if standardize == "both":
        tops = [standardized(logits.gather(-1, group), correction=0) for group in groups]
        inside[:-1] = [_inside(top / temperature) for top in tops]
    return between, inside


class _Split(torch.autograd.Function):
    """Logits [..., C] -> those at `index` [..., n], and all with those at minus infinity [..., C].

    A gather and a scatter, but with one pass for the gradient where autograd would take four.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(index)
        return logits.gather(-1, index), logits.scatter(-1, index, -math.inf)

    @staticmethod
    def backward(ctx: Any, gathered: Tensor, rest: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return rest.scatter(-1, index, gathered), None


class GDKDLoss(DistillationLoss):
    """Generalized decoupled KD: the teacher's k largest classes against the rest.

    The loss is w0 * `high` + w1 * `low_top` + w2 * `low_other`.

    Args:
        temperature: T > 0.
        k: classes in the top group, 1 <= k <= C-1. Unset: 5, or C-1 when that is less, with a warning.
        w0: weight of the KL between the two groups.
        w1: weight of the KL inside the top group.
        w2: weight of the KL inside the rest.
        kl: inside the groups, "forward", "reverse" or "both", as in `decoupled_kl`.
        strategy: "best" takes the k largest classes, "worst" the k smallest.
        standardize: "global" standardizes the logits over all classes, before T; "both" inside each group and
            "other" inside the rest, for the low-level terms only.
        reduction: "mean", "sum" or "none" over the samples.

    Reference:
        arXiv 2512.04625; the defaults are the authors' for transformers on ImageNet.
    """

    smallest_k = 1
    standardizations: tuple[str, ...] = ("none", "global", "both", "other")

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        k: int | None = None,
        w0: float = 0.5,
        w1: float = 1.0,
        w2: float = 1.0,
        kl: str = "forward",
        strategy: str = "best",
        standardize: str = "none",
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        self.temperature = positive("temperature", temperature)
        self.weights = {"high": weight("w0", w0), "low_top": weight("w1", w1), "low_other": weight("w2", w2)}
        self.kl = one_of("kl", kl, ("forward", "reverse", "both"))
        self.strategy = one_of("strategy", strategy, ("best", "worst"))
        self.standardize = one_of("standardize", standardize, self.standardizations)
        self.k, self._warned = k, False
        if k is not None and (not isinstance(k, int) or k < self.smallest_k):
            raise InputError(f"k is {k}: expected a whole number of at least {self.smallest_k}.")

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        groups = partitions.top_k(teacher, self.legal_k(teacher.shape[-1]), strategy=self.strategy)
        high, low, _ = _terms(student, teacher, groups, self.temperature, self.kl, self.standardize)
        return {"high": high, "low_top": low[0], "low_other": low[1]}

    def legal_k(self, num_classes: int) -> int:
        """k, or for an unset k the default, shrunk to at most C-1."""
        return self.k or min(DEFAULT_K, num_classes - 1)

    def check_num_classes(self, num_classes: int) -> None:
        """InputError when a k that the user set is not below C; one warning when the default shrinks."""
        super().check_num_classes(num_classes)
        k = self.legal_k(num_classes)
        if k >= num_classes:
            raise InputError(
                f"k is {k} with {num_classes} classes: expected {self.smallest_k} <= k <= {num_classes - 1}; "
                "lower k or leave it unset."
            )
        if k < DEFAULT_K and self.k is None and not self._warned and not torch.compiler.is_compiling():
            self._warned = True
            note = "; the middle group is empty and low_top is 0" if k < self.smallest_k else ""
            message = f"k is {k} instead of {DEFAULT_K}, as there are {num_classes} classes{note}."
            warnings.warn(message, stacklevel=2)


class GDKD3Loss(GDKDLoss):
    """Generalized decoupled KD with three groups: {top-1}, {top-2 .. top-k} and the rest.

    The loss is w0 * `high` + w1 * `low_top` + w2 * `low_other`; `low_top` is that of the middle group.

    Args:
        temperature: T > 0.
        k: classes in the first two groups together, 2 <= k <= C-1. Unset: 5, or C-1 when that is less, with a
            warning; with two classes the middle group is then empty and `low_top` is 0.
        w0: weight of the KL between the three groups.
        w1: weight of the KL inside the middle group.
        w2: weight of the KL inside the rest.
        standardize: "global" standardizes the logits over all classes, before T.
        reduction: "mean", "sum" or "none" over the samples.

    Reference:
        arXiv 2512.04625; the defaults are the authors' for transformers on ImageNet.
    """

    smallest_k = 2
    standardizations = ("none", "global")

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        k: int | None = None,
        w0: float = 1.0,
        w1: float = 1.0,
        w2: float = 1.0,
        standardize: str = "none",
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            temperature=temperature, k=k, w0=w0, w1=w1, w2=w2, standardize=standardize, reduction=reduction
        )

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        groups = partitions.top1_top_k(teacher, self.legal_k(teacher.shape[-1]))
        high, low, _ = _terms(student, teacher, groups, self.temperature, standardize=self.standardize)
        low_top = low[1] if len(groups) == 2 else torch.zeros_like(high)
        return {"high": high, "low_top": low_top, "low_other": low[-1]}


class DKDLoss(DistillationLoss):
    """Decoupled KD: the label against the other classes.

    The loss is alpha * `tckd` (between the two) + beta * `nckd` (inside the other classes).

    Args:
        temperature: T > 0.
        alpha: weight of the target-class term.
        beta: weight of the non-target-class term.
        partition: "target" singles out the label, "top1" the teacher's largest class (no labels needed).
        standardize: "global" standardizes the logits over all classes, before T.
        reduction: "mean", "sum" or "none" over the samples.

    Reference:
        Zhao, Cui, Song, Qiu and Liang, "Decoupled Knowledge Distillation", arXiv 2203.08679, Eq. 7; the
        defaults are those of arXiv 2512.04625 for transformers on ImageNet.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        alpha: float = 0.5,
        beta: float = 1.0,
        partition: str = "target",
        standardize: str = "none",
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        self.temperature = positive("temperature", temperature)
        self.weights = {"tckd": weight("alpha", alpha), "nckd": weight("beta", beta)}
        self.partition = one_of("partition", partition, ("target", "top1"))
        self.standardize = one_of("standardize", standardize, ("none", "global"))

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        groups = partitions.top_k(teacher, 1) if self.partition == "top1" else partitions.target(labels, teacher)
        high, low, _ = _terms(student, teacher, groups, self.temperature, standardize=self.standardize)
        return {"tckd": high, "nckd": low[1]}
