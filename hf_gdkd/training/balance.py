"""Automatic weights: how large the gradient of every loss is, and the weight that makes it as large as it should be."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import InputError
from ..losses import DistillationLoss, FeatureLoss
from ..losses.combined import is_auto
from .feature_balance import FeatureBalance, Taps
from .loss_parts import LossParts

logger = logging.getLogger(__name__)

# Lambda: how many times the cross-entropy's gradient that of a loss on logits is. Source: this project's trials on
# Fashion-MNIST (6,000 images) and glyphs (6,200), temperature 4. In RESULTS.md (automatic weights) kd, gdkd, dist and
# their combinations with these, untuned, are not seen to be below the same losses tuned by hand with four trials, but
# for gdkd+dist of the transformer on the third data set.
ALONE = 8.0  # shared by the losses on logits of a combination
BESIDE_FEATURES = {"dist": 4.0}
OTHERS_BESIDE_FEATURES = 1.0
SEVERAL_BESIDE_FEATURES = 4.0  # shared
FEATURE_WEIGHTS = {"fitnet": 30.0}  # of scale-free forms, in which one weight means the same everywhere
ON_FEATURES = 1.0  # at the features that a loss on features and the cross-entropy reach

SPAN = 100  # steps that a running mean looks back on
TOO_SMALL, TOO_LARGE = 0.02, 0.9


def found_weights(name: str, loss: DistillationLoss, kd_weight: float | str) -> dict[str, float | str]:
    """The weight of every member: a number, or "auto" where training finds it.

    Args:
        name: of the loss.
        loss: one, or several combined.
        kd_weight: "auto" makes the weight of a single loss automatic.

    """
    weights = {"": kd_weight} if is_auto(kd_weight) and "" in loss.members else loss.member_weights
    for member, each in loss.members.items():
        who = member or name
        if weights[member] == "auto" and who in FEATURE_WEIGHTS and each.normalize:
            weights[member] = FEATURE_WEIGHTS[who]
    return weights


def lambdas(name: str, weights: Mapping[str, float | str], *, beside_features: bool) -> dict[str, float]:
    """How many times the reference's gradient that of every loss with an automatic weight is.

    Examples:
        >>> lambdas("gdkd+dist+rkd", {"gdkd": "auto", "dist": "auto:3", "rkd": 1.0}, beside_features=False)
        {'gdkd': 4.0, 'dist': 3.0}
    """
    auto = [member for member, weight in weights.items() if is_auto(weight)]
    found = {}
    for member in auto:
        if not beside_features:
            default = ALONE / len(auto)
        elif len(auto) > 1:
            default = SEVERAL_BESIDE_FEATURES / len(auto)
        else:
            default = BESIDE_FEATURES.get(member or name, OTHERS_BESIDE_FEATURES)
        found[member] = float(str(weights[member]).partition(":")[2] or default)
    return found


class Balance(nn.Module):
    """Measures the gradients of the losses at the student's logits, and finds automatic weights from them.

    A weight makes the norm of its loss's gradient lambda times that of the weighted cross-entropy, or, where there is
    none, that of the first loss (whose own weight, if automatic, is 1). Norms are of the gradient of a whole optimizer
    step, over all micro-batches and processes, as a mean over the steps before, of which the last 100 count most. So a
    step is the same however it is split, and in the first one, before anything is known, automatic weights are 0. The
    means are buffers, which checkpoints hold.

    The gradient of every loss at the logits is needed anyway: `join` adds them up, and the backward pass goes on from
    the sum.

    Args:
        weights: of the losses on logits: numbers, or "auto".
        factors: lambda of those that are automatic.
        ce_weight: 0 where there is no cross-entropy.
        on_features: lambda of the losses on features with an automatic weight; see `FeatureBalance`.

    Raises:
        InputError: losses on features with nothing to measure them by.
    """

    def __init__(
        self,
        weights: Mapping[str, float | str],
        factors: Mapping[str, float],
        ce_weight: float,
        on_features: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.features = FeatureBalance(on_features) if on_features else None
        self.names = ["ce", *weights] if ce_weight > 0 else list(weights)
        self._weights, self._factors, self._ce_weight = dict(weights), dict(factors), ce_weight
        self.register_buffer("norms", torch.zeros(len(self.names)))
        self.register_buffer("steps", torch.zeros(()))
        self._since_log: tuple[Tensor, int] | None = None  # the sum of the shares, and of how many steps
        self._since_epoch: tuple[Tensor, int] | None = None
        self._warned: set[str] = set()
        self.begin_step()

    @classmethod
    def of(cls, name: str, loss: DistillationLoss | None, kd_weight: float | str, ce_weight: float) -> Balance | None:
        """For a loss of that name; None for a single one whose weight is a number, or where nothing can be measured."""
        if loss is None:
            return None
        weights = found_weights(name, loss, kd_weight)
        on_logits = {m: w for m, w in weights.items() if not isinstance(loss.members[m], FeatureLoss)}
        automatic = lambdas(name, on_logits, beside_features=len(on_logits) < len(weights))
        others = {m: w for m, w in weights.items() if m not in on_logits and is_auto(w)}
        on_features = {member: float(weight.partition(":")[2] or ON_FEATURES) for member, weight in others.items()}
        if not on_features and (not on_logits or (len(weights) == 1 and not automatic)):
            return None
        if on_features and not (on_logits or ce_weight > 0):
            raise InputError(
                f"the weight of {next(iter(on_features)) or name} is auto, and there is neither a cross-entropy nor a "
                "loss on logits to measure it by: use a number, or add kd."
            )
        return cls(on_logits, automatic, ce_weight, on_features)

    def weights(self) -> dict[str, float | Tensor]:
        """The weight in the present step of every loss that is on logits or automatic."""
        first = self.names[0]
        if first == "ce":
            scale = self._ce_weight
        else:
            scale = (1.0 if first in self._factors else self._weights[first]) / self._factors.get(first, 1.0)
        reference = self.norms[0] * scale
        found: dict[str, float | Tensor] = dict(self._weights)
        for name, factor in self._factors.items():
            norm = self.norms[self.names.index(name)]
            found[name] = torch.where(norm > 0, factor * reference / norm, 0)
        if first in self._factors:
            found[first] = 1.0
        return found if self.features is None else found | self.features.weights(scale)

    def begin_step(self, step: int = 0) -> None:
        """Forget the gradients of the step before; `step` is the number of those that are done."""
        self._squares: Tensor | None = None
        if self.features is not None:
            self.features.begin_step(step)

    def join(
        self,
        logits: Tensor,
        leaf: Tensor,
        terms: Mapping[str, Tensor],
        scales: Mapping[str, Any],
        taps: Mapping[str, Taps],
    ) -> Tensor:
        """The sum of scaled losses, whose gradient goes on from `logits`; the norms of each are noted.

        Args:
            logits: of the student.
            leaf: the same, detached; what the losses were computed from.
            terms: every loss, as its share of the mean over the optimizer step.
            scales: what each is multiplied with.
            taps: what each loss on features read of the student.
        """
        own = [torch.autograd.grad(terms[name], leaf, materialize_grads=True)[0] for name in self.names]
        squares = torch.stack([torch.linalg.vector_norm(each, dtype=torch.float32) ** 2 for each in own])
        factors = torch.stack([squares.new_ones(()) * scales[name] for name in self.names])  # no copy to the device
        self._squares = squares if self._squares is None else self._squares + squares
        self._scales = factors
        if self.features is not None:
            self.features.note(logits, own[0], terms, taps)
        gradient = sum(scales[name] * each for name, each in zip(self.names, own, strict=True))
        value = sum(scales[name] * terms[name].detach() for name in self.names)
        return _WithGradient.apply(logits, value, gradient)

    @torch.no_grad()
    def end_step(self, accelerator: Accelerator) -> None:
        """Take the step's norms into the means; all processes call this."""
        if self._squares is None:  # no distillation yet
            return
        norms = accelerator.reduce(self._squares, "sum").sqrt()
        if self.features is not None:
            self.features.end_step(accelerator)
        self.steps += 1
        self.norms += (norms - self.norms) / self.steps.clamp(max=SPAN)
        sizes = self._scales * norms
        share = sizes / sizes.sum().clamp(min=torch.finfo(sizes.dtype).tiny)
        self._since_log, self._since_epoch = _added(self._since_log, share), _added(self._since_epoch, share)

    def take(self, alone: str) -> dict[str, float]:
        """What is logged: the shares since the last call, and the automatic weights; `alone` names a single loss."""
        if self._since_log is None:
            return {}
        shares, self._since_log = _mean(self._since_log), None
        found = {f"share/{name or alone}": share for name, share in zip(self.names, shares, strict=True)}
        automatic = [*self._factors, *(() if self.features is None else self.features.names)]
        return found | {f"weight/{name or alone}": float(self.weights()[name]) for name in automatic}

    def warn(self, alone: str) -> None:
        """At the end of an epoch: say once which weight, a number, gave its loss hardly a part in it, or nearly all."""
        if self._since_epoch is None:
            return
        shares, self._since_epoch = _mean(self._since_epoch), None
        for name, share in zip(self.names, shares, strict=True):
            judged = len(self.names) > 1 and name not in {"ce", *self._factors, *self._warned}
            if judged and not TOO_SMALL <= share <= TOO_LARGE:
                self._warned.add(name)
                much, change = ("hardly learns", "larger") if share < TOO_SMALL else ("learns almost only", "smaller")
                logger.warning(
                    "The student %s from the loss %s, which had %.1f %% of the gradient at the logits in this "
                    "epoch: use a %s %s.",
                    much, name or alone, 100 * share, change, f"{name}.weight" if name else "kd_weight",
                )  # fmt: skip


def _added(running: tuple[Tensor, int] | None, value: Tensor) -> tuple[Tensor, int]:
    return (value, 1) if running is None else (running[0] + value, running[1] + 1)


def _mean(running: tuple[Tensor, int]) -> list[float]:
    return (running[0] / running[1]).tolist()


def total(
    values: Mapping[str, Tensor],
    scales: Mapping[str, float | Tensor],
    balance: Balance | None,
    logits: Tensor,
    leaf: Tensor,
    parts: LossParts,
) -> Tensor:
    """The sum of scaled losses, 0 without any; those that a balance measures at the logits are joined there."""
    if not values:
        return logits.sum() * 0.0
    taps = parts.taps()
    joined = [] if balance is None else [balance.join(logits, leaf, values, scales, taps)]
    measured = [] if balance is None else balance.names
    return sum([*joined, *(scales[name] * value for name, value in values.items() if name not in measured)])


class _WithGradient(torch.autograd.Function):
    """A value whose gradient at the logits is known already."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream.to(ctx.saved_tensors[0].dtype) * ctx.saved_tensors[0], None, None


class BalanceSteps(TrainerCallback):
    """Tells a trainer's `balance` where optimizer steps and epochs begin and end."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.trainer.balance is not None:
            self.trainer.balance.begin_step(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.trainer.balance is not None:
            self.trainer.balance.end_step(self.trainer.accelerator)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.trainer.balance is not None and state.is_world_process_zero:
            self.trainer.balance.warn(args.loss)
