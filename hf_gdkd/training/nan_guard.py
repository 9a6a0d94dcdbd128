"""Stops a run at the first loss that is NaN or infinite, before it reaches the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import TrainingError


class NaNGuard(TrainerCallback):
    """Looks at every optimizer step's losses before the step is taken.

    The device is waited for only until the step's last forward pass is done: it goes on with the backward pass. Under
    DeepSpeed, whose backward pass takes the step, that waits until they are looked at.

    Args:
        model: the student, whose buffers (BatchNorm's statistics) a bad batch spoils in its forward pass.
        accelerator: sums over processes, and tells the last micro-batch of a step.
        save: writes a checkpoint of the state before the step and returns its folder.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator, save: Callable[[], str]) -> None:
        self.buffers = list(model.buffers())
        self.accelerator, self.save = accelerator, save

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.step = state.global_step + 1
        self.before = [buffer.clone() for buffer in self.buffers]
        self.sums: Tensor | None = None
        self.rows: list[Tensor] = []

    def note(self, names: Sequence[str], sums: Tensor, rows: Tensor | None) -> None:
        """Take a micro-batch's summed parts of the loss [parts], by name, and the data set's rows it was made of."""
        self.names = names
        self.sums = sums if self.sums is None else self.sums + sums  # a sum with what is not finite is not finite
        if rows is not None:
            self.rows.append(rows)
        if self.accelerator.sync_gradients:
            everywhere = self.accelerator.reduce(self.sums, "sum") if self.accelerator.num_processes > 1 else self.sums
            self.verdict = everywhere.to("cpu", non_blocking=True)
            self.ready = torch.cuda.current_stream().record_event() if sums.is_cuda else None
            if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
                self._stop_if_bad()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._stop_if_bad()

    def _stop_if_bad(self) -> None:
        if self.ready is not None:
            self.ready.synchronize()
        bad = [name for name, value in zip(self.names, self.verdict.tolist(), strict=True) if not math.isfinite(value)]
        if not bad:
            return
        for buffer, value in zip(self.buffers, self.before, strict=True):
            buffer.copy_(value)
        rows = torch.cat(self.rows).tolist() if self.rows else []
        where = f", its rows {', '.join(map(str, rows[:64]))}{', ...' if len(rows) > 64 else ''}" if rows else ""
        raise TrainingError(
            f"at step {self.step} the loss is not finite in {', '.join(bad)}{where}: look at these "
            f"images, or lower --learning_rate; the state before the step is in {self.save()}."
        )
