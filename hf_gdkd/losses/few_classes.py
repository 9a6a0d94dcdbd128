"""The terms of gdkd and gdkd3 for compiled code on a CPU over few classes, as in label maps.

Each group is a mask by a threshold, so nothing is gathered, scattered or kept for each class: every pass over the
logits is a loop over samples or pixels side by side, as in plain KD.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

MOST_CLASSES, MOST_K = 32, 8  # operations are written out for each class and rank: compiling takes longer with each


def suits(logits: Tensor, k: int) -> bool:
    """Whether `nested_terms` is the way for logits [..., C] and a top group of k."""
    few = logits.shape[-1] <= MOST_CLASSES and k <= MOST_K
    return few and logits.device.type == "cpu" and torch.compiler.is_compiling()


def nested_terms(
    student: Tensor, teacher: Tensor, k: int, dim: int, *, temperature: float, top1: bool = False
) -> tuple[Tensor, list[Tensor], Tensor]:
    """What `two_level_terms` returns for the groups {top-1 .. top-k} and the rest; `top1`: {top-1} is one by itself.

    The classes are in dimension `dim` of the logits; of equal classes the first belong to the group.
    """
    ranks = (k, 1) if top1 else (k,)
    thresholds = [tensor for pair in _thresholds(teacher, ranks, dim) for tensor in pair]
    missing = [None] * (4 - len(thresholds))
    high, *low, log_mass = _NestedTerms.apply(student, teacher, temperature, dim, *thresholds, *missing)
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
    """`nested_terms` before T**2, with the gradient in closed form.

    A compiler stores what two sums share and what the gradient takes over from the forward pass, each as large as the
    logits. So sums share nothing, and the gradient compares anew, the other way round.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        temperature: float,
        dim: int,
        value: Tensor,
        place: Tensor,
        best: Tensor | None,
        best_place: Tensor | None,
    ) -> tuple[Tensor, ...]:
        s, t, places = _over(student, temperature), _over(teacher, temperature), _places(teacher, dim)
        top = (teacher > value) | ((teacher == value) & (places <= place))
        groups, student_mass, teacher_mass, low = [top, ~top], [], [], []
        if best is not None:
            top1 = places == best_place
            groups[0] = ~top1 & top
            student_mass.append(torch.where(top1, s, 0).sum(dim, keepdim=True))
            teacher_mass.append(_over(best, temperature))
            low.append(torch.zeros_like(best))
        for group in groups:
            largest_s, largest_t = (_finite(torch.where(group, x, -math.inf).amax(dim, keepdim=True)) for x in (s, t))
            total_s = torch.where(group, s - largest_s, -math.inf).exp().sum(dim, keepdim=True)
            total_t = torch.where(group, t - largest_t, -math.inf).exp().sum(dim, keepdim=True)
            weights = torch.where(~group, -math.inf, t - largest_t).exp()
            gap = (weights * (_finite(t - largest_t) - _finite(s - largest_s))).sum(dim, keepdim=True)
            student_mass.append(largest_s + total_s.log())
            teacher_mass.append(largest_t + total_t.log())
            term = gap / total_t - (total_t.log() - total_s.log())
            low.append(term.masked_fill((total_s == 0) | (total_t == 0), 0))
        log_p, log_q = _log_softmax(teacher_mass), _log_softmax(student_mass)
        high = sum(torch.where(torch.isneginf(p), 0, p.exp() * (p - q)) for p, q in zip(log_p, log_q, strict=True))
        slopes = [q.exp() - p.exp() for p, q in zip(log_p, log_q, strict=True)]  # of high, by the student's log-masses
        ctx.save_for_backward(student, teacher, value, place, best_place, *student_mass, *teacher_mass, *slopes)
        ctx.temperature, ctx.dim = temperature, dim
        log_mass = torch.cat(log_p, dim).movedim(dim, -1)
        ctx.mark_non_differentiable(log_mass)
        return high.squeeze(dim), *(term.squeeze(dim) for term in low), log_mass

    @staticmethod
    def backward(ctx: Any, high: Tensor, *low: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, value, place, best_place, *saved = ctx.saved_tensors
        n = len(saved) // 3
        student_mass, teacher_mass, slopes = saved[:n], saved[n : 2 * n], saved[2 * n :]
        high, *low = (gradient.unsqueeze(ctx.dim) for gradient in (high, *low[:n]))
        s, t, places = _over(student, ctx.temperature), _over(teacher, ctx.temperature), _places(teacher, ctx.dim)
        top = (value < teacher) | ((value == teacher) & (place >= places))

        def by_class(values: Sequence[Tensor]) -> Tensor:
            """The value that each class has by its group."""
            chosen = torch.where(top, *values[-2:])
            return chosen if best_place is None else torch.where(best_place == places, values[0], chosen)

        pairs = zip(low, student_mass, teacher_mass, strict=True)
        low = [term.masked_fill(torch.isneginf(q) | torch.isneginf(p), 0) for term, q, p in pairs]
        q = (s - by_class([_finite(mass) for mass in student_mass])).exp()
        p = (t - by_class([_finite(mass) for mass in teacher_mass])).exp()
        outer = [high * slope + term for slope, term in zip(slopes, low, strict=True)]
        return _over(by_class(outer) * q - by_class(low) * p, ctx.temperature), *[None] * 7


def _over(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature


def _places(logits: Tensor, dim: int) -> Tensor:
    """0 to C-1 along the dimension of the classes."""
    shape = [1] * logits.ndim
    shape[dim] = -1
    return torch.arange(logits.shape[dim], dtype=logits.dtype, device=logits.device).view(shape)


def _finite(logits: Tensor) -> Tensor:
    return logits.clamp(min=torch.finfo(logits.dtype).min)


def _log_softmax(masses: list[Tensor]) -> list[Tensor]:
    largest = reduce(torch.maximum, masses)
    total = sum((mass - largest).exp() for mass in masses).log() + largest
    return [mass - total for mass in masses]
