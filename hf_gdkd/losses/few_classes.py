"""The terms of gdkd and gdkd3 for compiled code on a CPU over few classes, as in label maps.

Each group is a mask by a threshold, so nothing is gathered or scattered, and the gradient keeps only the logits and
what each sample has: every pass over the logits is a loop over samples or pixels side by side, as in plain KD.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

MOST_CLASSES, LARGEST_K = 32, 8  # operations are written out for each class and rank, and compiled one by one


def suits(logits: Tensor, k: int) -> bool:
    """Whether `nested_terms` is the way for logits [..., C] and a top group of k; the code is then for this C alone."""
    few = logits.shape[-1] <= MOST_CLASSES and k <= LARGEST_K
    compiled = torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
    return few and compiled and logits.device.type == "cpu"


def nested_terms(
    student: Tensor, teacher: Tensor, k: int, dim: int, *, temperature: float, top1: bool = False
) -> tuple[Tensor, list[Tensor], Tensor]:
    """What `two_level_terms` returns for the groups {top-1 .. top-k} and the rest.

    With `top1` the groups are {top-1}, {top-2 .. top-k}, which is empty for k = 1, and the rest. The classes are in
    dimension `dim` of the logits; of equal classes the first belong to the group.
    """
    if temperature != 1:  # here, as a temperature may be a symbol of the compiler's, which a Function cannot take
        student, teacher = student / temperature, teacher / temperature
    ranks = (k, 1) if top1 else (k,)
    thresholds = [tensor for pair in _thresholds(teacher, ranks, dim) for tensor in pair]
    missing = [None] * (4 - len(thresholds))
    high, *low, log_mass = _NestedTerms.apply(student, teacher, dim, *thresholds, *missing)
    return temperature**2 * high, [temperature**2 * term for term in low], log_mass


def _thresholds(logits: Tensor, ranks: Sequence[int], dim: int) -> list[tuple[Tensor, Tensor]]:
    """The value of the class of each rank and its place, [.., 1, ..], in one pass over the logits."""
    classes = logits.unbind(dim)
    largest: list[Tensor] = []
    for value in classes:
        for i, other in enumerate(largest):
            largest[i], value = torch.maximum(other, value), torch.minimum(other, value)
        if len(largest) < max(ranks):
            largest.append(value)
    found = []
    for rank in ranks:
        threshold = largest[rank - 1]
        left = rank - sum((value > threshold).to(value.dtype) for value in classes)  # equal classes up to this rank
        place = torch.zeros_like(threshold)
        for i, value in enumerate(classes):
            equal = value == threshold
            place = torch.where(equal & (left > 0), i, place)
            left = left - equal.to(value.dtype)
        found.append((threshold.unsqueeze(dim), place.unsqueeze(dim)))
    return found


class _NestedTerms(torch.autograd.Function):
    """`nested_terms` of logits over T, before T**2, with the gradient in closed form.

    What two operations share the compiler stores, as large as the logits. So some expressions are written twice, in two
    ways, lest the compiler find them equal: each says so.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        dim: int,
        value: Tensor,
        place: Tensor,
        best: Tensor | None,
        best_place: Tensor | None,
    ) -> tuple[Tensor, ...]:
        places = _places(teacher, dim)
        top = (teacher > value) | ((teacher == value) & (places <= place))
        groups, low, saved = [top, ~top], [], []
        if best is not None:
            top1 = places == best_place
            groups[0] = ~top1 & top
            zero = torch.zeros_like(best)
            saved.append((torch.where(top1, student, 0).sum(dim, keepdim=True), best, zero, zero))
            low.append(zero)
        for group in groups:
            s, t = (_finite(torch.where(group, x, -math.inf).amax(dim, keepdim=True)) for x in (student, teacher))
            total_s = torch.where(group, student - s, -math.inf).exp().sum(dim, keepdim=True)
            total_t = torch.where(group, teacher - t, -math.inf).exp().sum(dim, keepdim=True)
            weights = torch.where(~group, -math.inf, teacher - t).exp()  # as summed above, in another way
            gap = (weights * (_finite(teacher - t) - _finite(student - s))).sum(dim, keepdim=True)
            log_total_s, log_total_t = total_s.log(), total_t.log()
            term = gap / total_t - (log_total_t - log_total_s)
            low.append(term.masked_fill((total_s == 0) | (total_t == 0), 0))
            saved.append((s, t, log_total_s, log_total_t))
        log_q, log_p = (_log_softmax([row[i] + row[i + 2] for row in saved]) for i in (0, 1))
        high = sum(torch.where(torch.isneginf(p), 0, p.exp() * (p - q)) for p, q in zip(log_p, log_q, strict=True))
        slopes = [q.exp() - p.exp() for p, q in zip(log_p, log_q, strict=True)]  # of high, by the student's log-masses
        by_group = [tensor for column in zip(*saved, strict=True) for tensor in column]
        ctx.save_for_backward(student, teacher, value, place, best_place, *by_group, *slopes)
        ctx.dim = dim
        log_mass = torch.cat(log_p, dim).movedim(dim, -1)
        ctx.mark_non_differentiable(log_mass)
        return high.squeeze(dim), *(term.squeeze(dim) for term in low), log_mass

    @staticmethod
    def backward(ctx: Any, high: Tensor, *low: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, value, place, best_place, *saved = ctx.saved_tensors
        n = len(saved) // 5
        s, t, log_total_s, log_total_t, slopes = (saved[i : i + n] for i in range(0, 5 * n, n))
        high, *low = (gradient.unsqueeze(ctx.dim) for gradient in (high, *low[:n]))
        places = _places(teacher, ctx.dim)
        top = (value < teacher) | ((value == teacher) & (place >= places))  # as in the forward pass, in another way

        def by_class(values: Sequence[Tensor]) -> Tensor:
            """The value that each class has by its group."""
            chosen = torch.where(top, *values[-2:])
            return chosen if best_place is None else torch.where(best_place == places, values[0], chosen)

        totals = zip(low, log_total_s, log_total_t, strict=True)
        low = [term.masked_fill(torch.isneginf(q) | torch.isneginf(p), 0) for term, q, p in totals]
        q = (student - by_class(s) - by_class([_finite(x) for x in log_total_s])).exp()
        p = (teacher - by_class(t) - by_class([_finite(x) for x in log_total_t])).exp()
        outer = [high * slope + term for slope, term in zip(slopes, low, strict=True)]
        return by_class(outer) * q - by_class(low) * p, *[None] * 6


def _places(logits: Tensor, dim: int) -> Tensor:
    """0 to C-1 along the dimension of the classes."""
    shape = [1] * logits.ndim
    shape[dim] = -1
    return torch.arange(logits.shape[dim], dtype=logits.dtype, device=logits.device).view(shape)


def _finite(logits: Tensor) -> Tensor:
    return logits.clamp(min=torch.finfo(logits.dtype).min)


def _log_softmax(masses: list[Tensor]) -> list[Tensor]:
    largest = reduce(torch.maximum, masses)
    log_total = sum((mass - largest).exp() for mass in masses).log()
    return [mass - largest - log_total for mass in masses]
