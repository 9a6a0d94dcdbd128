"""`record_gradients`: how strongly the terms of GDKD pull at the classes outside the top group, over the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import InputError
from ..losses import GDKDLoss
from ..losses.gradients import TERMS, non_top_gradients
from .run_files import GRADIENTS_FILE, GRADIENTS_PICTURE, replacing
from .style import style

EVERY = 10  # optimizer steps
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NAMES = {
    "high": "high level, times w0",
    "low_other": "inside the rest, times w2",
    "kd": "inside the rest, as in plain KD",
}


class GradientRecord(TrainerCallback):
    """Notes, every ten optimizer steps, quantiles over the samples of a micro-batch of this process.

    Values stay on the device until a checkpoint or the end, when gradients.json and gradients.png are written.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._waiting: list[tuple[int, float, Tensor]] = []
        self._due: tuple[int, float] | None = None  # the step and the epoch to record

    def add(self, loss: GDKDLoss, student: Tensor, teacher: Tensor, labels: Tensor | None) -> None:
        """Take a micro-batch's logits [N, C]: the first of a step that is to be recorded.

        Raises:
            InputError: logits of maps.
        """
        if self._due is None or not torch.is_grad_enabled():
            return
        if student.ndim != 2:
            raise InputError("record_gradients is for classes of whole images: leave it out.")
        with torch.no_grad():
            found = torch.stack(list(non_top_gradients(loss, student, teacher, labels).values()))
            at = torch.tensor(QUANTILES, dtype=found.dtype).to(found.device, non_blocking=True)
            quantiles = found.quantile(at, dim=1).T  # (terms, quantiles)
        self._waiting.append((*self._due, quantiles))
        self._due = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin anew, or go on with what the run had recorded at the step from which it resumes."""
        self.rows, self._waiting, self._due = [], [], None
        path = Path(args.output_dir, GRADIENTS_FILE)
        if state.global_step > 0 and path.is_file():
            recorded = json.loads(path.read_text(encoding="utf-8"))["rows"]
            self.rows = [row for row in recorded if row["step"] < state.global_step]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._due = None if state.global_step % EVERY else (state.global_step, state.epoch or 0.0)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        self._waiting = [row for row in self._waiting if row[0] < state.global_step]  # none of a step taken back
        if state.is_world_process_zero:
            self.write(args.output_dir)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.is_world_process_zero:
            self.write(args.output_dir)
            self.draw(args.output_dir)

    def write(self, folder: str | Path) -> None:
        """Write gradients.json: for each recorded step and term, the quantiles."""
        for step, epoch, quantiles in self._waiting:
            self.rows.append({"step": step, "epoch": epoch, **dict(zip(TERMS, quantiles.tolist(), strict=True))})
        self._waiting = []
        Path(folder).mkdir(parents=True, exist_ok=True)
        with replacing(Path(folder, GRADIENTS_FILE)) as part:
            content = {"quantiles": QUANTILES, "terms": NAMES, "rows": self.rows}
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def draw(self, folder: str | Path) -> None:
        """Draw gradients.png (the paper's Figure 3): the median of each term, and its inner half and nine tenths."""
        from matplotlib.figure import Figure

        if not self.rows:
            return
        with style(), replacing(Path(folder, GRADIENTS_PICTURE)) as part:
            figure = Figure(figsize=(7, 4), layout="constrained")
            axes = figure.subplots()
            epochs = [row["epoch"] for row in self.rows]
            for term in TERMS:
                low, lower, middle, upper, high = zip(*(row[term] for row in self.rows), strict=True)
                (line,) = axes.plot(epochs, middle, label=NAMES[term])
                axes.fill_between(epochs, lower, upper, color=line.get_color(), alpha=0.25, linewidth=0)
                axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.1, linewidth=0)
            axes.set(xlabel="epoch", ylabel="mean |gradient| of the logits outside the top group", yscale="log")
            axes.legend()
            figure.savefig(part)
