"""Stops a run at the first loss or gradient that is NaN or infinite, before it reaches the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import TrainingError
from .checkpoints import last_complete_checkpoint
from .stopped_step import BadStep, random_state, set_random_state


class NaNGuard(TrainerCallback):
    """Looks at every optimizer step's losses and gradient norm before the step is taken.

    The norm is the one that Trainer computes for clipping or for its log. The device is waited for until it is known:
    until the backward pass is done. Under DeepSpeed, whose backward pass takes the step, the losses are looked at
    before it, and the norm is known when the weights have changed already.

    With a gradient scaler (fp16), infinite gradients are normal: the scaler leaves the step out and lowers its factor.
    They stop the run where the factor, down to 1, can no longer be what makes them infinite.

    Args:
        trainer: a `CheckpointTrainer`; a bad batch spoils its model's buffers (BatchNorm's) in the forward pass.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.never_finite: list[str] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        modules = nn.ModuleList([self.trainer.model, self.trainer.projections])
        self.buffers = list(modules.buffers())
        self.before = [buffer.clone() for buffer in self.buffers]
        self.never_finite = self.trainer.not_finite()  # such as a mask of minus infinity

    def begin(self, batches: Sequence[Mapping[str, Any]], samples: int, drawn_from: dict[str, Tensor]) -> None:
        """Take the next step's micro-batches, the samples of all processes, and the random state before reading."""
        self.batches, self.samples, self.drawn_from = batches, samples, drawn_from

    @torch.no_grad()
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.step = state.global_step + 1
        self.random = random_state(args.device)
        # The order of an epoch is drawn as its first batch is read; a run that resumes there draws it again.
        self.resumes_with = self.drawn_from if float(state.epoch or 0).is_integer() else self.random
        if self.buffers:
            torch._foreach_copy_(self.before, self.buffers)
        self.forget()

    def forget(self) -> None:
        """Forget the losses and the norm of the step before."""
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
            self._stop_if_bad()

    def note_norm(self, norm: Tensor | float | None) -> None:
        """Take the norm of the step's gradients, before clipping."""
        self.norm = norm.full_tensor() if isinstance(norm, DTensor) else norm

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._stop_if_bad()

    def _stop_if_bad(self) -> None:
        accelerator = self.trainer.accelerator
        values = accelerator.reduce(self.sums, "sum") if accelerator.num_processes > 1 else self.sums
        if self.norm is not None:
            values = torch.cat([values, torch.as_tensor(self.norm).to(values).reshape(1)])
        found = dict(zip([*self.names, "gradients"], values.tolist(), strict=False))  # waits for the device, once
        bad = [name for name, value in found.items() if not math.isfinite(value)]
        lost = [name for name in bad if name != "gradients"]
        if not bad or (not lost and self._scaler_lowers_its_factor()):
            return
        rows = torch.cat(self.rows).tolist() if self.rows else []
        where = f", its rows {', '.join(map(str, rows[:64]))}{', ...' if len(rows) > 64 else ''}" if rows else ""
        what = f"the loss is not finite in {', '.join(lost)}" if lost else "the gradients are not finite"
        raise TrainingError(
            f"at step {self.step} {what}{where}: look at these images, or lower --learning_rate; {self._save(found)}"
        )

    def _scaler_lowers_its_factor(self) -> bool:
        accelerator, args = self.trainer.accelerator, self.trainer.args
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            return args.fp16  # it has a scaler of its own
        scaler = getattr(accelerator, "scaler", None)
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1

    @torch.no_grad()
    def _save(self, found: Mapping[str, float]) -> str:
        """Save the state before the step, and the step itself; a sentence that says where."""
        for buffer, value in zip(self.buffers, self.before, strict=True):
            buffer.copy_(value)
        if set(self.trainer.not_finite()) - set(self.never_finite):
            last = last_complete_checkpoint(self.trainer.folder)
            return "the weights before the step are not finite either and are not saved; " + (
                f"the last complete checkpoint is {last}." if last else "there is no complete checkpoint."
            )
        set_random_state(self.trainer.args.device, self.resumes_with)
        checkpoint = self.trainer.save_state()
        batches = [self.trainer._prepare_inputs(batch) for batch in self.batches]
        step = BadStep(self.step, self.samples, self.trainer.steps_per_epoch, found, batches, self.random)
        step.save(checkpoint, self.trainer.args)
        return f"the state before the step is in {checkpoint}, and `hf-gdkd replay {checkpoint}` repeats the step."
