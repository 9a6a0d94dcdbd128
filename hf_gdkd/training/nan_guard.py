"""Stops a run at the first loss or gradient that is NaN or infinite, before it reaches the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import TrainingError
from .checkpoints import last_complete_checkpoint
from .run_files import SETTINGS_FILE
from .stopped_step import BadStep, random_state, set_random_state


@dataclass
class _Step:
    """An optimizer step whose losses and gradients are not known to be finite yet, and the state before it."""

    number: int
    epoch: float | None
    samples: int  # of all processes
    batches: Sequence[Mapping[str, Any]]
    random: dict[str, Tensor]
    resumes_with: dict[str, Tensor]  # the random state of a run that begins with this step
    buffers: list[Tensor]
    found: _Numbers | None = None
    rows: Sequence[Tensor] = ()
    schedule: dict[str, Any] | None = None
    groups: Sequence[dict[str, Any]] = ()  # of the optimizer, without their weights


class NaNGuard(TrainerCallback):
    """Sees to it that no optimizer step whose losses or gradients are not finite reaches the weights.

    It looks at the summed losses and at the norm of the gradients that Trainer computes for clipping or for its log.
    A fused optimizer of torch leaves such a step out on the device, weights and own state unchanged. So nobody waits:
    what was found is read when the next step is in the device's queue, or before anything is logged, evaluated or saved
    (`settle`). What was counted meanwhile is taken back.

    Of other optimizers, under FSDP and with a gradient scaler, the device is waited for before the optimizer's step.
    Under DeepSpeed, whose backward pass takes the step, the losses are looked at before it, and the norm is known when
    the weights have changed already.

    With a gradient scaler (fp16), infinite gradients are normal: the scaler leaves the step out and lowers its factor.
    They stop the run where the factor, down to 1, can no longer be what makes them infinite.

    Args:
        trainer: a `CheckpointTrainer`; a bad batch spoils its model's buffers (BatchNorm's) in the forward pass.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.never_finite: list[str] = []
        self._taken: _Step | None = None  # its optimizer step is in the device's queue; nobody has looked yet
        self._skips: Optimizer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        modules = nn.ModuleList([self.trainer.model, self.trainer.projections])
        self.buffers = list(modules.buffers())
        self._copies = [[buffer.clone() for buffer in self.buffers] for _ in range(2)]  # of this step and the last
        self.never_finite = self.trainer.not_finite()  # such as a mask of minus infinity
        self._taken, self._skips = None, _skips_on_the_device(self.trainer)

    def begin(self, batches: Sequence[Mapping[str, Any]], samples: int, drawn_from: dict[str, Tensor]) -> None:
        """Take the next step's micro-batches, the samples of all processes, and the random state before reading."""
        self._read = batches, samples, drawn_from

    @torch.no_grad()
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        batches, samples, drawn_from = self._read
        random, copy = random_state(args.device), self._copies[state.global_step % 2]
        # The order of an epoch is drawn as its first batch is read; a run that resumes there draws it again.
        resumes_with = drawn_from if float(state.epoch or 0).is_integer() else random
        if self.buffers:
            torch._foreach_copy_(copy, self.buffers)
        self._step = _Step(state.global_step + 1, state.epoch, samples, batches, random, resumes_with, copy)
        self.forget()

    def forget(self) -> None:
        """Forget the losses and the norm of the step before."""
        self.names: Sequence[str] = ()  # none in a step without cross-entropy, before the distillation begins
        self.sums: Tensor | None = None
        self.norm: Tensor | float | None = None
        self.rows: list[Tensor] = []

    def note(self, names: Sequence[str], sums: Tensor, rows: Tensor | None) -> None:
        """Take a micro-batch's summed parts of the loss [parts], by name, and the data set's rows it was made of."""
        self.names = names
        self.sums = sums if self.sums is None else self.sums + sums  # a sum with what is not finite is not finite
        if rows is not None:
            self.rows.append(rows)
        accelerator = self.trainer.accelerator
        if accelerator.sync_gradients and accelerator.distributed_type == DistributedType.DEEPSPEED:
            self._take()
            self.settle()

    def note_norm(self, norm: Tensor | float | None) -> None:
        """Take the norm of the step's gradients, before clipping."""
        self.norm = norm.full_tensor() if isinstance(norm, DTensor) else norm

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.settle()
        values = self._take()
        if self._skips is None:
            self.settle()
        else:
            self._skips.found_inf = (~values.isfinite()).any().float()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._skips is not None:
            self._skips.found_inf = None

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.settle()

    def _take(self) -> Tensor:
        """Note the step as one to be looked at; returns its numbers, on the device."""
        accelerator, step = self.trainer.accelerator, self._step
        values = torch.zeros(0, device=accelerator.device) if self.sums is None else self.sums
        if accelerator.num_processes > 1:
            values = accelerator.reduce(values, "sum")
        names = list(self.names)
        if self.norm is not None:
            values = torch.cat([values, torch.as_tensor(self.norm).to(values).reshape(1)])
            names.append("gradients")
        step.found, step.rows = _Numbers(names, values), self.rows
        if self._skips is not None:
            step.schedule = deepcopy(self.trainer.lr_scheduler.state_dict())
            step.groups = [{k: v for k, v in group.items() if k != "params"} for group in self._skips.param_groups]
        self._taken = step
        return values

    def settle(self) -> None:
        """Look at the last optimizer step, if nobody has yet.

        Raises:
            TrainingError: its losses or gradients are not finite.
        """
        step, self._taken = self._taken, None
        if step is None:
            return
        found = step.found.read()
        bad = [name for name, value in found.items() if not math.isfinite(value)]
        lost = [name for name in bad if name != "gradients"]
        if not bad or (not lost and self._scaler_lowers_its_factor()):
            return
        rows = torch.cat(list(step.rows)).tolist() if step.rows else []
        where = f", its rows {', '.join(map(str, rows[:64]))}{', ...' if len(rows) > 64 else ''}" if rows else ""
        what = f"the loss is not finite in {', '.join(lost)}" if lost else "the gradients are not finite"
        self._take_back(step)
        raise TrainingError(
            f"at step {step.number} {what}{where}: look at these images, or lower --learning_rate; "
            f"{self._save(step, found)}"
        )

    def _scaler_lowers_its_factor(self) -> bool:
        accelerator, args = self.trainer.accelerator, self.trainer.args
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            return args.fp16  # it has a scaler of its own
        scaler = getattr(accelerator, "scaler", None)
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1

    @torch.no_grad()
    def _take_back(self, step: _Step) -> None:
        """Make the state that of before the step, which the optimizer left out or has not taken."""
        trainer = self.trainer
        for buffer, value in zip(self.buffers, step.buffers, strict=True):
            buffer.copy_(value)
        if step.schedule is not None:
            trainer.lr_scheduler.load_state_dict(step.schedule)
            for group, values in zip(self._skips.param_groups, step.groups, strict=True):
                group.update(values)
        trainer.ema.take_back(step.number)
        trainer.state.global_step, trainer.state.epoch = step.number - 1, step.epoch

    def _save(self, step: _Step, found: Mapping[str, float]) -> str:
        """Save the state before the step, and the step itself; a sentence that says where."""
        trainer = self.trainer
        if trainer.spoiled():
            last = last_complete_checkpoint(trainer.folder)
            return "the weights before the step are not finite either and are not saved; " + (
                f"the last complete checkpoint is {last}." if last else "there is no complete checkpoint."
            )
        set_random_state(trainer.args.device, step.resumes_with)
        checkpoint = trainer.save_state()
        batches = [trainer._prepare_inputs(batch) for batch in step.batches]
        bad = BadStep(step.number, step.samples, trainer.steps_per_epoch, found, batches, step.random)
        bad.save(checkpoint, trainer.args)
        if Path(checkpoint).with_name(SETTINGS_FILE).is_file():
            repeats = f"`hf-gdkd replay {checkpoint}` repeats the step"
        else:  # a run from Python
            call = f"hf_gdkd.training.replay.repeat_step(trainer, {checkpoint!r})"
            repeats = f"{call} repeats the step, with this trainer or one made again like it"
        return f"the state before the step is in {checkpoint}, and {repeats}."


class _Numbers:
    """Named numbers [n] that a GPU is still to compute, on their way to the host."""

    def __init__(self, names: Sequence[str], values: Tensor) -> None:
        self.names, self.values = names, values.to("cpu", non_blocking=True) if values.is_cuda else values
        self.there = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    def read(self) -> dict[str, float]:
        """The numbers by name, as soon as they are there."""
        if self.there is not None:
            self.there.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


def _skips_on_the_device(trainer: Trainer) -> Optimizer | None:
    """The optimizer, if it is one of torch that leaves a step out where its `found_inf`, on the device, is 1."""
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    fused = getattr(optimizer, "_step_supports_amp_scaling", False) and all(
        group.get("fused") and not group.get("dampening") and not any(isinstance(p, DTensor) for p in group["params"])
        for group in optimizer.param_groups
    )
    if not fused or getattr(trainer.accelerator, "scaler", None) is not None or trainer.is_deepspeed_enabled:
        return None
    for group in optimizer.param_groups:
        for p in group["params"] if group.get("momentum") else ():
            # Without dampening that is what SGD begins with. It would leave its own memory unwritten in a step that it
            # leaves out, and refuses weights whose first gradient comes later than that of others.
            optimizer.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
    return optimizer
