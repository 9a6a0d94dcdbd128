"""What a run leaves beside the student: its settings, its metrics, the picture of its training."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SETTINGS_FILE, METRICS_FILE, PICTURE, CARD = "recipe.yaml", "metrics.json", "training.png", "README.md"
SEGMENTATION_PICTURE = "segmentation.png"  # of what a segmenter predicts
GRADIENTS_FILE, GRADIENTS_PICTURE = "gradients.json", "gradients.png"  # with record_gradients
RUN_FILES = (SETTINGS_FILE, METRICS_FILE, PICTURE, SEGMENTATION_PICTURE, GRADIENTS_FILE, GRADIENTS_PICTURE, CARD)
JUDGED = {"agreement": "agreement with the teacher", "mean_iou": "mean IoU", "top1": "top-1 accuracy"}


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file completely or not at all: the path given is written to, and takes the place of `path` at the end.

    Runs that share a folder, as that of a teacher's cache, do not disturb each other.
    """
    path = Path(path)
    part = path.with_name(f".part-{os.getpid()}-{path.name}")  # keeps the suffix, which may say the format
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_run_settings(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Write recipe.yaml: `hf-gdkd distill --config` with it repeats the run."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with replacing(Path(folder, SETTINGS_FILE)) as part:
        part.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")


class SettingsWriter(TrainerCallback):
    """Writes recipe.yaml when training begins, and not before: until then the folder may hold another run."""

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, settings

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.is_world_process_zero:
            write_run_settings(self.folder, self.settings)


def read_run_settings(folder: str | Path) -> dict[str, Any] | None:
    """What write_run_settings wrote; None when there is none."""
    path = Path(folder, SETTINGS_FILE)
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_metrics(folder: str | Path, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json; what is not finite is null."""
    with replacing(Path(folder, METRICS_FILE)) as part:
        part.write_text(json.dumps(_finite(metrics), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def best_and_last(log_history: Sequence[Mapping[str, float]], metric: str) -> dict[str, dict[str, float]]:
    """The best and the last evaluation during training: the metric (higher is better) and the epoch of each."""
    rows = [{metric: row[f"eval_{metric}"], "epoch": row["epoch"]} for row in log_history if f"eval_{metric}" in row]
    return {"best": max(rows, key=lambda row: row[metric]), "last": rows[-1]} if rows else {}


def ms_per_step(seconds: float, state: TrainerState, begun: int = 0) -> float | None:
    """Milliseconds an optimizer step, evaluations left out.

    Args:
        seconds: how long the run took, from step `begun` on.
        state: the trainer's, after training.
        begun: the step of the checkpoint from which the run resumed.
    """
    evaluating = sum(row.get("eval_runtime", 0.0) for row in state.log_history if row["step"] > begun)
    steps = state.global_step - begun
    return 1000 * (seconds - evaluating) / steps if steps > 0 else None
