"""What every distillation loss is: checked input, named parts, their weighted sum, a reduction."""

import inspect
import math
import numbers
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import InputError
from .gradient_scaling import scaled_gradient


class DistillationLoss(nn.Module):
    """Compares a student's logits with a teacher's: checks them, and adds the weighted parts that a subclass computes.

    A new loss sets `weights` in its `__init__` and implements `compute`; `register_loss` makes its name known to
    `build_loss`. It computes in float32 (float64 for float64 logits), also under autocast, and its gradient
    flows to the student only. It contains no cross-entropy and no schedule.

    Args:
        dim: the dimension of the classes, in the logits; 1 for maps (N, C, H, W). They are not copied.
        reduction: "mean" or "sum" over the samples, or "none": one value per sample, shape (...). A loss with
            `per_batch` has one value per batch, which no reduction changes.

    Examples:
        >>> class GapLoss(DistillationLoss):
        ...     def __init__(self, *, power: float = 2.0, dim: int = -1, reduction: str = "mean") -> None:
        ...         super().__init__(dim=dim, reduction=reduction)
        ...         self.power, self.weights = power, {"gap": 1.0}
        ...
        ...     def compute(self, student, teacher, labels):
        ...         return {"gap": (student - teacher).abs().pow(self.power).mean(-1)}
        >>> GapLoss(power=1.0)(torch.ones(2, 3), torch.zeros(2, 3))
        tensor(1.)
    """

    per_batch: bool = False
    weights: Mapping[str, float]
    """The weight of every part, by name."""
    scales_gradients: bool = True
    """Whether `gradient_scaling` applies: it is about the classes of each sample."""
    gradient_scaling: float | None = None
    """The strength of `gradient_scaling.scaled_gradient`, which `build_loss` sets; None: the gradient is the loss's."""

    def __new__(cls, *_: Any, **options: Any) -> Self:
        loss = super().__new__(cls)
        object.__setattr__(loss, "_options", options)  # for `extra_repr`; nn.Module is not set up yet
        return loss

    def __init__(self, *, dim: int = -1, reduction: str = "mean") -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise InputError(f"dim is {dim!r}: expected the number of the class dimension, such as -1 or 1.")
        self.dim = dim
        self.reduction = one_of("reduction", reduction, ("mean", "sum", "none"))

    @property
    def needs_labels(self) -> bool:
        """Whether it goes by the label of each sample."""
        return self.gradient_scaling is not None

    @property
    def takes_soft_labels(self) -> bool:
        """Whether it works with the labels of mixup and CutMix, [..., C]: a loss without labels does."""
        return not self.needs_labels

    @property
    def couples_samples(self) -> bool:
        """Whether one sample's value depends on the others: what does not count is then taken out of the batch."""
        return self.per_batch or self.gradient_scaling is not None

    @property
    def members(self) -> dict[str, "DistillationLoss"]:
        """The losses that this one adds up, by name: itself, without a name, unless it is a `CombinedLoss`."""
        return {"": self}

    @property
    def member_weights(self) -> dict[str, float | str]:
        """The weight of every member, by name."""
        return {"": 1.0}

    def extra_repr(self) -> str:
        """The options, defaults included; those left unset without a default are left out."""
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        options = defaults | self._options | {"gradient_scaling": self.gradient_scaling}
        return ", ".join(f"{name}={value!r}" for name, value in options.items() if value is not None)

    def compute(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """The unweighted parts of checked logits [..., C], in float32 or float64, the teacher detached.

        The classes are last, whatever `dim` is."""
        raise NotImplementedError

    def check_num_classes(self, num_classes: int) -> None:
        """Raise InputError when this loss cannot work with so many classes; `parts` calls it too."""
        if num_classes < 2:
            raise InputError(f"logits have {num_classes} class: a distillation loss needs at least 2 classes.")

    def parts(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The unweighted terms by name, T**2 included, in nats where they are divergences.

        Args:
            student_logits: [..., C], before temperature; the classes are in dimension `dim`.
            teacher_logits: [..., C], same shape; a constant. Minus infinity is a probability of 0: that class
                costs nothing in a forward KL, a group of such classes costs 0, and standardization leaves them out.
            labels: [...] int64, for the losses that need them.

        Returns:
            One value per sample, [...]; one value per batch, [], for a `per_batch` loss.

        Raises:
            InputError: the shapes differ, the classes are too few, or labels are missing or out of range.
        """
        student, teacher = prepare(student_logits, teacher_logits, self.dim)
        if labels is not None and labels.shape == student_logits.shape:
            labels = labels.movedim(self.dim, -1)
        self.check_num_classes(student.shape[-1])
        if self.gradient_scaling is not None:
            temperature = getattr(self, "temperature", 1.0)
            student = scaled_gradient(student, teacher, labels, self.gradient_scaling, temperature)
        with torch.autocast(student.device.type, enabled=False):
            return self.compute(student, teacher, labels)

    def weigh(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the parts, of the shape of one part."""
        weighed = []
        for name, part in parts.items():
            as_it_is = self.weights[name] == 1 and part.is_floating_point()  # saves a pass
            weighed.append(part if as_it_is else self.weights[name] * part)
        return sum(weighed[1:], start=weighed[0])

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss: `parts`, weighed and reduced. The arguments and errors are those of `parts`."""
        loss = self.weigh(self.parts(student_logits, teacher_logits, labels))
        if self.per_batch or self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()


def prepare(student_logits: Tensor, teacher_logits: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Both logits in the dtype to compute in, classes last, the teacher's detached; InputError when shapes differ."""
    if student_logits.ndim == 0 or teacher_logits.ndim == 0:
        raise InputError("logits are a single number: expected shape (..., classes).")
    fewest = min(student_logits.ndim, teacher_logits.ndim)
    if not -fewest <= dim < fewest:
        raise InputError(f"dim is {dim} for logits of {fewest} dimensions: expected {-fewest} .. {fewest - 1}.")
    if student_logits.shape[dim] != teacher_logits.shape[dim]:
        raise InputError(
            f"teacher has {teacher_logits.shape[dim]} classes, student {student_logits.shape[dim]}: choose a "
            "teacher fine-tuned on this data set, or match the label spaces first."
        )
    if student_logits.shape != teacher_logits.shape:
        raise InputError(
            f"teacher logits have shape {tuple(teacher_logits.shape)}, student logits "
            f"{tuple(student_logits.shape)}: expected the same shape; pass both models the same "
            "samples, and resize one to the other where they differ in resolution."
        )
    dtype = torch.promote_types(torch.promote_types(student_logits.dtype, teacher_logits.dtype), torch.float32)
    return student_logits.movedim(dim, -1).to(dtype), teacher_logits.detach().movedim(dim, -1).to(dtype)


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """`value` when it is allowed, else InputError."""
    if value not in allowed:
        raise InputError(f"{name} is {value!r}: expected one of {', '.join(allowed)}.")
    return value


def whole(name: str, value: Any, smallest: int = 1) -> int:
    """`value` as an int when it is a whole number, at least `smallest`, of any type (5.0, NumPy's); else InputError."""
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and value % 1 == 0 and value >= smallest
    if not fits:
        raise InputError(f"{name} is {value}: expected a whole number of at least {smallest}.")
    return int(value)


def positive(name: str, value: float) -> float:
    """`value` when it is a finite number above 0, else InputError."""
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value}: expected a finite number above 0.")
    return value


def weight(name: str, value: float) -> float:
    """`value` when it is a finite number of at least 0, else InputError."""
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name} is {value}: a weight is a finite number of at least 0.")
    return value
