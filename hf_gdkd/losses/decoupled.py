"""The losses of KL at two levels: GDKD, GDKD3 and DKD."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from . import few_classes
from . import partition as partitions
from .base import DistillationLoss, one_of, positive, weight, whole
from .levels import two_level_terms
from .relational import correlation, to_samples

logger = logging.getLogger(__name__)

DEFAULT_K = 5


class GDKDLoss(DistillationLoss):
    """Teaches the mass of the teacher's k largest classes, and the distributions inside them and inside the rest.

    The loss is w0 * `high` + w1 * `low_top` + w2 * `low_other`, and with `gamma` also + gamma * `intra`.

    Args:
        temperature: T > 0.
        k: classes in the top group, 1 <= k <= C-1. Unset: 5, or C-1 when that is less, with a warning.
        threshold: > 1, the authors' is 2: each sample has a k of its own, the number of classes that stand out in
            the teacher's softened distribution (`partition.adaptive_k`); k is then the most it can be, unset: C-1.
        class_k: C numbers, each 1 <= k <= C-1: k for the samples of each class, by label; instead of k.
        w0: weight of the KL between the two groups.
        w1: weight of the KL inside the top group.
        w2: weight of the KL inside the rest.
        coupled: `low_top` and `low_other` are times the mass that the teacher gives to the group, sample by sample;
            with w0 = w1 = w2 = 1 the loss is then plain KD.
        gamma: weight of DIST's intra-class relation, over the batch; the same value for all of its samples.
        kl: inside the groups, "forward", "reverse" or "both", as in `decoupled_kl`.
        strategy: "best" takes the k largest classes, "worst" the k smallest.
        standardize: "global" standardizes the logits over all classes, before T; "both" inside each group and
            "other" inside the rest, for the low-level terms only.
        dim: the dimension of the classes, in the logits.
        reduction: "mean", "sum" or "none" over the samples.

    Reference:
        arXiv 2512.04625; the defaults are the authors' for transformers on ImageNet. `threshold`, `class_k`,
        `coupled`, `gamma` and `standardize` are in the code they published, without results.

    Example:
        >>> student, teacher = torch.randn(2, 8, 100)
        >>> loss = GDKDLoss(k=5, temperature=2.0, w2=8.0)
        >>> sorted(loss.parts(student, teacher))
        ['high', 'low_other', 'low_top']
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    smallest_k = 1
    standardizations: tuple[str, ...] = ("none", "global", "both", "other")

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        k: int | None = None,
        threshold: float | None = None,
        class_k: Sequence[int] | None = None,
        w0: float = 0.5,
        w1: float = 1.0,
        w2: float = 1.0,
        coupled: bool = False,
        gamma: float = 0.0,
        kl: str = "forward",
        strategy: str = "best",
        standardize: str = "none",
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(dim=dim, reduction=reduction)
        self.temperature = positive("temperature", temperature)
        self.weights = {"high": weight("w0", w0), "low_top": weight("w1", w1), "low_other": weight("w2", w2)}
        if weight("gamma", gamma):
            self.weights["intra"] = gamma
        self.coupled = coupled
        self.kl = one_of("kl", kl, ("forward", "reverse", "both"))
        self.strategy = one_of("strategy", strategy, ("best", "worst"))
        self.standardize = one_of("standardize", standardize, self.standardizations)
        self.k = None if k is None else whole("k", k, self.smallest_k)
        self.threshold, self._warned = threshold, False
        by_class = None if class_k is None else torch.tensor([whole("k", one, self.smallest_k) for one in class_k])
        self.register_buffer("class_k", by_class, persistent=False)
        self._largest_class_k = None if class_k is None else max(by_class.tolist(), default=0)
        if threshold is not None and positive("threshold", threshold) <= 1:
            raise InputError(f"threshold is {threshold}: expected a number above 1, how far a class must stand out.")
        if class_k is not None and (k, threshold) != (None, None):
            raise InputError("class_k says how many classes are in the top group: leave k and threshold out.")

    @property
    def needs_labels(self) -> bool:
        return super().needs_labels or self.class_k is not None

    @property
    def couples_samples(self) -> bool:
        return super().couples_samples or "intra" in self.weights

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        high, low, log_mass = self.terms(student, teacher, labels)
        if self.coupled:
            low = [mass * term for mass, term in zip(log_mass.exp().unbind(-1), low, strict=True)]
        parts = {"high": high, "low_top": low[0], "low_other": low[1]}
        if "intra" in self.weights:
            p, q = ((to_samples(logits) / self.temperature).softmax(-1) for logits in (student, teacher))
            parts["intra"] = (self.temperature**2 * (1 - correlation(p, q, 0))).expand_as(high)
        return parts

    def terms(
        self, student: Tensor, teacher: Tensor, labels: Tensor | None, top1: bool = False
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """What `two_level_terms` returns; `top1`: the teacher's largest class is a group by itself."""
        k = self.legal_k(teacher.shape[-1])
        usual = (self.threshold, self.class_k, self.kl, self.strategy, self.standardize)
        if usual == (None, None, "forward", "best", "none") and few_classes.suits(teacher, k):
            pair = (logits.movedim(-1, self.dim) for logits in (student, teacher))
            return few_classes.nested_terms(*pair, k, self.dim, temperature=self.temperature, top1=top1)
        groups = partitions.top1_top_k(teacher, k) if top1 else self.top_group(teacher, labels)
        return two_level_terms(student, teacher, groups, self.temperature, self.kl, self.standardize)

    def top_group(self, teacher: Tensor, labels: Tensor | None) -> partitions.Groups | Tensor:
        """The top group by index, or as a mask [..., C] where each sample has a k of its own."""
        largest = self.legal_k(teacher.shape[-1])
        if self.class_k is not None:
            (label,) = partitions.target(labels, teacher)
            k = self.class_k.to(teacher.device)[label.squeeze(-1)]
        elif self.threshold is not None:
            k = partitions.adaptive_k(teacher / self.temperature, self.threshold).clamp(max=largest)
        else:
            return partitions.top_k(teacher, largest, strategy=self.strategy)
        return partitions.first(teacher, k, strategy=self.strategy)

    def legal_k(self, num_classes: int) -> int:
        """The size of the largest top group: k, or for an unset k the default, shrunk to at most C-1."""
        if self.class_k is not None:
            return self._largest_class_k
        return self.k or (num_classes - 1 if self.threshold is not None else min(DEFAULT_K, num_classes - 1))

    def check_num_classes(self, num_classes: int) -> None:
        """InputError when a k that the user set does not suit C; one warning when the default shrinks."""
        super().check_num_classes(num_classes)
        if self.class_k is not None and len(self.class_k) != num_classes:
            raise InputError(
                f"class_k has {len(self.class_k)} numbers with {num_classes} classes: use one for each class."
            )
        k = self.legal_k(num_classes)
        if k >= num_classes:
            raise InputError(
                f"k is {k} with {num_classes} classes: expected {self.smallest_k} <= k <= {num_classes - 1}; "
                "lower k or leave it unset."
            )
        unset = self.k is None and self.threshold is None and self.class_k is None
        if k < DEFAULT_K and unset and not self._warned and not torch.compiler.is_compiling():
            self._warned = True
            note = "; the middle group is empty and low_top is 0" if k < self.smallest_k else ""
            logger.warning("k is %d instead of %d, as there are %d classes%s.", k, DEFAULT_K, num_classes, note)


class GDKD3Loss(GDKDLoss):
    """Teaches the masses of three groups of classes, {top-1}, {top-2 .. top-k} and the rest, and what is inside them.

    The loss is w0 * `high` + w1 * `low_top` + w2 * `low_other`; `low_top` is that of the middle group.

    Args:
        temperature: T > 0.
        k: classes in the first two groups together, 2 <= k <= C-1. Unset: 5, or C-1 when that is less, with a
            warning; with two classes the middle group is then empty and `low_top` is 0.
        w0: weight of the KL between the three groups.
        w1: weight of the KL inside the middle group.
        w2: weight of the KL inside the rest.
        standardize: "global" standardizes the logits over all classes, before T.
        dim: the dimension of the classes, in the logits.
        reduction: "mean", "sum" or "none" over the samples.

    Reference:
        arXiv 2512.04625; the defaults are the authors' for transformers on ImageNet.

    Example:
        >>> student, teacher = torch.randn(2, 8, 100)
        >>> GDKD3Loss(k=5, reduction="none")(student, teacher).shape
        torch.Size([8])
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
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            temperature=temperature, k=k, w0=w0, w1=w1, w2=w2, standardize=standardize, dim=dim, reduction=reduction
        )

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        k = self.legal_k(teacher.shape[-1])
        high, low, _ = self.terms(student, teacher, labels, top1=True)
        low_top = low[1] if k > 1 else torch.zeros_like(high)
        return {"high": high, "low_top": low_top, "low_other": low[-1]}


class DKDLoss(DistillationLoss):
    """Teaches the probability of the label, and the distribution of the other classes, with a weight each.

    The loss is alpha * `tckd` (between the two) + beta * `nckd` (inside the other classes).

    Args:
        temperature: T > 0.
        alpha: weight of the target-class term.
        beta: weight of the non-target-class term.
        partition: "target" singles out the label, "top1" the teacher's largest class (no labels needed).
        standardize: "global" standardizes the logits over all classes, before T.
        dim: the dimension of the classes, in the logits.
        reduction: "mean", "sum" or "none" over the samples.

    Reference:
        Zhao, Cui, Song, Qiu and Liang, "Decoupled Knowledge Distillation", arXiv 2203.08679, Eq. 7; the
        defaults are those of arXiv 2512.04625 for transformers on ImageNet.

    Example:
        >>> student, teacher = torch.randn(2, 8, 100)
        >>> DKDLoss(beta=8.0)(student, teacher, torch.randint(100, (8,))).shape
        torch.Size([])
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        alpha: float = 0.5,
        beta: float = 1.0,
        partition: str = "target",
        standardize: str = "none",
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(dim=dim, reduction=reduction)
        self.temperature = positive("temperature", temperature)
        self.weights = {"tckd": weight("alpha", alpha), "nckd": weight("beta", beta)}
        self.partition = one_of("partition", partition, ("target", "top1"))
        self.standardize = one_of("standardize", standardize, ("none", "global"))

    @property
    def needs_labels(self) -> bool:
        return super().needs_labels or self.partition == "target"

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        groups = partitions.top_k(teacher, 1) if self.partition == "top1" else partitions.target(labels, teacher)
        high, low, _ = two_level_terms(student, teacher, groups, self.temperature, standardize=self.standardize)
        return {"tckd": high, "nckd": low[1]}
