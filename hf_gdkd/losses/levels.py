"""KL at two levels: between groups of classes, and inside each of them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import partition as partitions
from .base import one_of, positive, prepare
from .kd import kl_divergence, standardized


class DecoupledTerms(NamedTuple):
    """Holds what `decoupled_kl` returns.

    `high` [...] and `low` [..., G] are in nats, times T**2; `mass` [..., G] is the teacher's group masses.
    """

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
    dim: int = -1,
) -> DecoupledTerms:
    """Split KL(teacher || student) into the KL between groups of classes, and the KL inside each group.

    Args:
        student_logits: [..., C] float, before temperature.
        teacher_logits: [..., C], same shape; treated as constant. Minus infinity is a probability of 0; a
            group without a finite class has a mass and a low-level term of 0.
        groups: G-1 index tensors [..., n_g], mutually exclusive; group G is every other class.
        temperature: T > 0.
        kl: inside the groups, "forward" KL(teacher || student), "reverse" KL(student || teacher), or the mean
            of "both"; between them it is always forward, as in the paper.
        dim: the dimension of the classes, in the logits; the groups and the result have theirs last.

    Returns:
        `high` [...], `low` [..., G] in nats, times T**2, and the teacher's group masses [..., G].
        All terms are 0 when the logits agree. A group of one class has no low-level term: 0.

    Raises:
        InputError: shapes differ, a group is empty, overlaps another or is out of range, or T <= 0.

    Reference:
        Zheng and Cheng, "Rethinking Decoupled Knowledge Distillation: A Predictive Distribution Perspective",
        arXiv 2512.04625, IEEE TNNLS 37(6), 2742-2756, 2026.

    Examples:
        >>> student, teacher = torch.randn(2, 8, 10)
        >>> terms = decoupled_kl(student, teacher, partitions.top_k(teacher, 3))
        >>> kd = terms.high + (terms.mass * terms.low).sum(-1)  # plain KD, by the chain rule
        >>> torch.testing.assert_close(kd, kl_divergence(teacher.log_softmax(-1), student.log_softmax(-1)))
    """
    student, teacher = prepare(student_logits, teacher_logits, dim)
    positive("temperature", temperature)
    one_of("kl", kl, ("forward", "reverse", "both"))
    if not torch.compiler.is_compiling():
        partitions.check_groups(groups, student.shape[-1])
    groups = [group.expand(*student.shape[:-1], -1) for group in groups]
    with torch.autocast(student.device.type, enabled=False):
        high, low, log_mass = two_level_terms(student, teacher, groups, temperature, kl)
        return DecoupledTerms(high, torch.stack(low, -1), log_mass.exp())


def two_level_terms(
    student: Tensor,
    teacher: Tensor,
    groups: Sequence[Tensor] | Tensor,
    temperature: float,
    kl: str = "forward",
    standardize: str = "none",
) -> tuple[Tensor, list[Tensor], Tensor]:
    """`high`, each `low`, the teacher's log-masses, of checked input; `standardize` is that of GDKDLoss.

    `groups` are index tensors as in `decoupled_kl`, or a mask [..., C] of the first of two groups.
    """
    if standardize == "global":
        student, teacher = standardized(student), standardized(teacher)
    by_index = not isinstance(groups, Tensor)
    operations = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()  # trace plain ones
    if by_index and kl == "forward" and standardize in ("none", "global") and not operations:
        index = torch.cat(tuple(groups), -1) if len(groups) > 1 else groups[0]  # cat would copy one
        sizes = [group.shape[-1] for group in groups]
        high, *low, log_mass = _Terms.apply(student, teacher, index, sizes, temperature)
        return high, low, log_mass
    return _terms(student, teacher, groups, temperature, kl, standardize)


def _terms(
    student: Tensor, teacher: Tensor, groups: Sequence[Tensor] | Tensor, temperature: float, kl: str, standardize: str
) -> tuple[Tensor, list[Tensor], Tensor]:
    """`two_level_terms` operation by operation."""
    levels = _masked_levels if isinstance(groups, Tensor) else _levels
    student_mass, student_inside = levels(student, groups, temperature, standardize)
    teacher_mass, teacher_inside = levels(teacher, groups, temperature, standardize)
    pairs = zip(teacher_inside, student_inside, strict=True)
    high = kl_divergence(teacher_mass, student_mass)
    return temperature**2 * high, [temperature**2 * _divergence(t, s, kl) for t, s in pairs], teacher_mass


class _Inside(NamedTuple):
    """A distribution inside a group: softmax(logits), as weights over their total."""

    logits: Tensor  # [..., n] less their maximum, or [..., C] with the classes of other groups at minus infinity
    weights: Tensor  # [..., n], exp(logits)
    total: Tensor  # [..., 1], the sum of the weights; 0 where no class of the group is finite
    log_sum: Tensor  # [..., 1], the logsumexp of the group's logits

    def kl(self, other: "_Inside") -> Tensor:
        """KL(self || other), [...]. A term whose own probability is 0 is 0, and a KL with an empty group.

        No mask is kept for the gradient, as compiled code is slow to store booleans.
        """
        lowest = torch.finfo(self.logits.dtype).min
        gap = self.logits.clamp(min=lowest) - other.logits.clamp(min=lowest)  # 0 where both are minus infinity
        empty = (self.total == 0) | (other.total == 0)
        total, other_total = (inside.total.masked_fill(empty, 1) for inside in (self, other))
        mean = (self.weights * gap).sum(-1, keepdim=True) / total
        return (mean - (total.log() - other_total.log())).masked_fill(empty, 0).squeeze(-1)


def _inside(logits: Tensor) -> _Inside:
    largest = logits.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    logits = logits - largest
    weights = logits.exp()
    total = weights.sum(-1, keepdim=True)
    empty = total == 0
    log_sum = (largest + total.masked_fill(empty, 1).log()).masked_fill(empty, -math.inf)
    return _Inside(logits, weights, total, log_sum)


def _divergence(teacher: _Inside, student: _Inside, kl: str) -> Tensor:
    if kl == "both":
        return (teacher.kl(student) + student.kl(teacher)) / 2
    return teacher.kl(student) if kl == "forward" else student.kl(teacher)


class _Terms(torch.autograd.Function):
    """`two_level_terms` of the forward KL, with the gradient in closed form.

    For the gradient it keeps the logits, and little beside them; autograd would keep tensors of their size and run
    three times the operations.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, index: Tensor, sizes: list[int], temperature: float
    ) -> tuple[Tensor, ...]:
        rest = _largest_total_and_term(_rest(student, teacher, index, temperature))
        tops = _top(student, teacher, index, temperature).split(sizes, -1)
        largest, log_total, low = zip(*(_largest_total_and_term(top) for top in tops), rest, strict=True)
        largest, log_total = torch.cat(largest, -1), torch.cat(log_total, -1)
        student_mass, teacher_mass = (largest + log_total).log_softmax(-1)
        terms = [kl_divergence(teacher_mass, student_mass), *low]
        kept = teacher.clone() if teacher.is_inference() else teacher  # autograd saves no tensor of inference mode
        ctx.save_for_backward(student, kept, index, largest, log_total)
        ctx.sizes, ctx.temperature = sizes, temperature
        ctx.mark_non_differentiable(teacher_mass)
        return *(terms if temperature == 1 else (term.mul_(temperature**2) for term in terms)), teacher_mass

    @staticmethod
    def backward(ctx: Any, high: Tensor, *low: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, index, largest, log_total = ctx.saved_tensors
        temperature, sizes, low = ctx.temperature, ctx.sizes, low[:-1]
        again = torch.is_grad_enabled()  # a gradient of this gradient is asked for
        if again or torch._C._functorch.is_legacy_batchedtensor(high):  # or many gradients at once
            with torch.enable_grad():
                first, terms, _ = _terms(student, teacher, index.split(sizes, -1), temperature, "forward", "none")
            gradient = torch.autograd.grad((first, *terms), student, (high, *low), create_graph=again)
            return *gradient, None, None, None, None
        inner = torch.stack(low, -1).masked_fill_(torch.isneginf(largest).any(0), 0)
        q, p = (largest + log_total).softmax(-1)
        factors = torch.stack((q.sub_(p).mul_(high.unsqueeze(-1)).add_(inner), inner.neg()))
        if temperature != 1:
            factors.mul_(temperature)
        # One after the other: beside a logit of -1e9 a sum of both would lose the second.
        largest = largest.clamp(min=torch.finfo(largest.dtype).min)
        top = _top(student, teacher, index, temperature).sub_(_spread(largest, sizes)).sub_(_spread(log_total, sizes))
        top = top.exp_().mul_(_spread(factors, sizes)).sum(0)
        rest = _rest(student, teacher, index, temperature).sub_(largest[..., -1:]).sub_(log_total[..., -1:])
        rest.exp_().mul_(factors[..., -1:])
        return rest[0].add_(rest[1]).scatter_(-1, index, top), None, None, None, None


def _largest_total_and_term(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a group's logits over T [2, ..., n], student first: the largest and the logsumexp less it, and the KL [...].

    The first two are [2, ..., 1]; where no class of the group is finite they are minus infinity and 0, and the KL is 0.
    """
    largest = logits.amax(-1, keepdim=True)
    inside = logits.log_softmax(-1)
    del logits  # frees those of the rest
    empty = torch.isneginf(largest)
    log_total = inside.amax(-1, keepdim=True).neg_().masked_fill_(empty, 0)
    weights = inside[1].exp()
    inside.clamp_(min=torch.finfo(inside.dtype).min)  # 0 between two that are minus infinity
    term = inside[1].sub_(inside[0]).mul_(weights).sum(-1)
    return largest, log_total, term.masked_fill_(empty.any(0).squeeze(-1), 0)


def _top(student: Tensor, teacher: Tensor, index: Tensor, temperature: float) -> Tensor:
    """Both logits over T at `index` [2, ..., n], student first."""
    pair = torch.stack((student.gather(-1, index), teacher.gather(-1, index)))
    return pair if temperature == 1 else pair.div_(temperature)


def _rest(student: Tensor, teacher: Tensor, index: Tensor, temperature: float) -> Tensor:
    """Both logits over T [2, ..., C], student first, with those at `index` at minus infinity."""
    pair = torch.stack((student, teacher))
    pair = pair if temperature == 1 else pair.div_(temperature)
    return pair.scatter_(-1, index.expand(2, *index.shape), -math.inf)


def _spread(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Of values by group [2, ..., G], those of the groups but the last, as often as the group has classes, or once."""
    if len(sizes) == 1:
        return values[..., :1]
    return torch.cat([values[..., i, None].expand(*values.shape[:-1], n) for i, n in enumerate(sizes)], -1)


def _levels(
    logits: Tensor, groups: Sequence[Tensor], temperature: float, standardize: str
) -> tuple[Tensor, list[_Inside]]:
    """Log-masses of the groups [..., G], and the distribution inside each."""
    index = torch.cat(tuple(groups), -1)
    gathered, rest = _split(logits / temperature, index)
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


def _masked_levels(logits: Tensor, top: Tensor, temperature: float, standardize: str) -> tuple[Tensor, list[_Inside]]:
    """As `_levels`, for the classes in the mask `top` [..., C] and the others: any number of them in each sample."""
    groups = (top, ~top)
    inside = [_inside((logits / temperature).masked_fill(~group, -math.inf)) for group in groups]
    between = torch.cat([group.log_sum for group in inside], -1).log_softmax(-1)
    for i, group in enumerate(groups):
        if standardize == "both" or (standardize == "other" and group is groups[-1]):
            alone = standardized(logits, ~group, correction=0) / temperature
            inside[i] = _inside(alone.masked_fill(~group, -math.inf))
    return between, inside


def _split(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [..., C] -> those at `index` [..., n], and all with those at minus infinity [..., C]."""
    if torch._C._are_functorch_transforms_active():  # torch.func goes through operations, not through `_Split`
        return logits.gather(-1, index), logits.scatter(-1, index, -math.inf)
    return _Split.apply(logits, index)


class _Split(torch.autograd.Function):
    """`_split`, with one pass for the gradient where autograd would take four."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(index)
        return logits.gather(-1, index), logits.scatter(-1, index, -math.inf)

    @staticmethod
    def backward(ctx: Any, gathered: Tensor, rest: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return rest.scatter(-1, index, gathered), None
