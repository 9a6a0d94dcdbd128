"""The moving average of the student's weights, which is evaluated and saved in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

RAW_WEIGHTS_FILE = "raw_weights.safetensors"


class EMA(TrainerCallback):
    """Keeps an exponential moving average of a model's floating-point weights and buffers while it trains.

    It is updated after every optimizer step: at step n the old average weighs min(ema_decay, (1 + n) / (10 + n)), so
    that the start is soon forgotten. Model and `ema_decay` are those of each training run; without `ema_decay` nothing
    happens. A checkpoint's model is the average, with the raw weights in a file beside it; when training ends, the
    model takes the average over.
    """

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] | None = None
        self.training = False
        self._before: tuple[int, dict[str, Tensor]] | None = None  # the last step that it took in, and what it was then

    def reset(self) -> None:
        """Forget an average that an interrupted training run left."""
        self.training, self.average, self._before = False, None, None

    def take_back(self, step: int) -> None:
        """Make the average that of before this optimizer step, if that was taken in last."""
        if self._before is not None and self._before[0] == step:
            self.average, self._before = self._before[1], None

    def adopt(self, model: nn.Module) -> None:
        """Make the model's weights, as they are now, the average."""
        self._find_weights(model)
        self.average = {name: t.clone() for name, t in self.weights.items()}

    def _find_weights(self, model: nn.Module) -> None:
        self.weights = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        self.training = args.ema_decay is not None
        if self.training and self.average is None:
            self.adopt(model)
        elif self.training:
            self._find_weights(model)  # DDP may have moved them since `load`

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.training:
            step = state.global_step
            share = 1 - min(args.ema_decay, (1 + step) / (10 + step))
            self._before = step, self.average
            average = torch._foreach_lerp(list(self.average.values()), list(self.weights.values()), share)
            self.average = dict(zip(self.average, average, strict=True))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.training:
            self._put(self.average)
            self.reset()

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        torch._foreach_copy_(list(self.weights.values()), [weights[name] for name in self.weights])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """During training, the model with the average in place of its weights; otherwise the model as it is."""
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
        """Write the raw weights beside a checkpoint's average."""
        if self.training:
            raw = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in self.weights.items()}
            save_file(raw, Path(folder, RAW_WEIGHTS_FILE))

    def load(self, folder: str | Path, model: nn.Module) -> None:
        """Keep the average of a checkpoint, which `model` holds, and give `model` the raw weights back."""
        self.adopt(model)
        self._put(load_file(Path(folder, RAW_WEIGHTS_FILE)))
