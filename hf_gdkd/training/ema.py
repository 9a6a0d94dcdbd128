"""The moving average of the student's weights that is evaluated and saved in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import InputError

EMA_FILE = "ema.safetensors"


class EMA(TrainerCallback):
    """Exponential moving average of the floating-point weights and buffers of `model`, after every optimizer step.

    At step n the old average weighs min(decay, (1 + n) / (10 + n)), so that the start is soon forgotten. When training
    ends the model takes the average over.

    Args:
        model: the student, unwrapped.
        decay: weight of the old average, 0 < decay < 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.weights: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] | None = None
        self.training = False

    def _find_weights(self) -> None:
        self.weights = {name: t for name, t in self.model.state_dict().items() if t.is_floating_point()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.training = True
        self._find_weights()
        if self.average is None:
            self.average = {name: t.clone() for name, t in self.weights.items()}

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        step = state.global_step
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), share)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._put(self.average)
        self.training, self.average = False, None

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        torch._foreach_copy_(list(self.weights.values()), list(weights.values()))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While training, the model with the average in place of its weights; else the model as it is."""
        if not self.training:
            yield
            return
        kept = {name: t.clone() for name, t in self.weights.items()}
        self._put(self.average)
        try:
            yield
        finally:
            self._put(kept)

    def save(self, folder: str | Path) -> None:
        """Write the average beside a checkpoint's weights; nothing when no training is under way."""
        if self.training:
            save_file({name: t.contiguous() for name, t in self.average.items()}, Path(folder, EMA_FILE))

    def load(self, folder: str | Path) -> None:
        """Go on with the average of a checkpoint.

        Raises:
            InputError: it holds none.
        """
        path = Path(folder, EMA_FILE)
        if not path.is_file():
            raise InputError(f"checkpoint {folder} was saved without ema_decay: resume without it, or begin anew.")
        self._find_weights()
        saved = load_file(path)
        self.average = {name: saved[name].to(t.device, t.dtype) for name, t in self.weights.items()}
