"""The gradients that the terms of GDKD and GDKD3 give the classes outside the top group, in closed form."""

import torch
from torch import Tensor

from ..errors import InputError
from .base import DistillationLoss
from .decoupled import GDKD3Loss, GDKDLoss
from .partition import top_k

TERMS = ("high", "low_other", "kd")


def has_gradients(loss: DistillationLoss) -> bool:
    """Whether the terms of a loss are those whose gradients are known here: gdkd or gdkd3, as published."""
    return isinstance(loss, GDKDLoss) and loss.kl == "forward" and loss.standardize == "none"


def check_has_gradients(loss: DistillationLoss | None, name: str) -> None:
    """Refuse a loss, or several, of which not exactly one has gradients that are known here.

    Raises:
        InputError: neither gdkd nor gdkd3, both of them, or an option of theirs that changes the terms.
    """
    if loss is None or sum(map(has_gradients, loss.members.values())) != 1:
        raise InputError(
            f"gradients are recorded of gdkd and gdkd3 with forward KL and without standardize, not of this {name}: "
            "leave record_gradients out, or choose one of them."
        )


def non_top_gradients(
    loss: GDKDLoss, student: Tensor, teacher: Tensor, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """The mean absolute gradient of each sample over its logits outside the top group: [N] for each term.

    These are `high`, weighted by w0; `low_other`, weighted by w2; and `kd`, what plain KD has in the place of the
    latter: its coupled term, which is times the teacher's mass outside the top group.

    Args:
        loss: gdkd or gdkd3; `gamma` and `gradient_scaling` have no part in it.
        student, teacher: logits [N, C].
        labels: classes [N], for `class_k`.

    Reference:
        arXiv 2512.04625, Figure 3. For class i of group g, d high / d z_i = T * (p_i - b_g * p_i|g), with the student's
        p and the teacher's mass b_g, and d low_g / d z_i = T * (p_i|g - q_i|g), with the teacher's q.
    """
    student, teacher, temperature = student.detach().float(), teacher.detach().float(), loss.temperature
    if isinstance(loss, GDKD3Loss):
        groups = top_k(teacher, loss.legal_k(teacher.shape[-1]))
    else:
        groups = loss.top_group(teacher, labels)
    top = groups
    if not isinstance(groups, Tensor):
        top = torch.zeros_like(teacher, dtype=torch.bool).scatter(-1, groups[0], True)
    student, teacher = student / temperature, teacher / temperature
    inside, taught = (logits.masked_fill(top, -torch.inf).softmax(-1) for logits in (student, teacher))
    mass = teacher.softmax(-1).masked_fill(top, 0).sum(-1, keepdim=True)
    high = student.softmax(-1).masked_fill(top, 0) - mass * inside
    low = inside - taught
    weight = loss.weights["low_other"] * (mass if loss.coupled else 1)
    terms = (loss.weights["high"] * high, weight * low, mass * low)
    count = (~top).sum(-1)
    return {name: temperature * term.abs().sum(-1) / count for name, term in zip(TERMS, terms, strict=True)}
