"""What a model is worth on a data set: its logits, its numbers, its size and its speed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from ..data.datasets import Viewed, collate
from ..data.views import EvalTransform, View
from ..errors import InputError
from ..training.teacher import Teacher, logits_of, mean_prediction
from .metrics import classification_metrics

ALL = slice(None)  # columns, where a model's classes are the data set's


@torch.no_grad()
def predict(
    model: nn.Module, rows: Dataset, view: View, *, batch_size: int = 64, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray | None, float]:
    """Logits (N, C) of a model over a data set, the labels (N) if there are any, and images a second.

    The time is that of the forward passes alone, the first batch left out where there are several.
    """
    model = model.to(device).eval()
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    loader = DataLoader(Viewed(rows, EvalTransform(view)), batch_size, collate_fn=collate)
    logits, labels, seconds, images = [], [], 0.0, 0
    for batch in tqdm(loader, desc="evaluating", leave=False):
        pixels = batch["pixel_values"].to(device, dtype)
        start = time.perf_counter()
        logits.append(logits_of(model(pixels)).float().cpu().numpy())
        if len(logits) > 1 or len(loader) == 1:
            seconds, images = seconds + time.perf_counter() - start, images + len(pixels)
        if "labels" in batch:
            labels.append(batch["labels"].numpy())
    return np.concatenate(logits), np.concatenate(labels) if labels else None, images / seconds


def measure(
    model: nn.Module,
    rows: Dataset,
    view: View,
    *,
    columns: np.ndarray | slice = ALL,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, dict[str, float]]:
    """Logits (N, C) in the data set's label space, and top1, top5, nll, ece (with labels), size and speed.

    `columns` is the index of the model's class for each of the data set's.
    """
    logits, labels, speed = predict(model, rows, view, batch_size=batch_size, device=device)
    logits = logits[:, columns]
    numbers = {} if labels is None else classification_metrics(logits, labels)
    return logits, numbers | size_of(model, view) | {"images_per_second": speed}


def measure_teacher(teacher: Teacher, rows: Dataset, **options: Any) -> tuple[np.ndarray, dict[str, float]]:
    """`measure` of a teacher through its own view, in the label space that it was matched to."""
    return measure(teacher.model, rows, teacher.view, columns=_columns(teacher), **options)


def _columns(teacher: Teacher) -> np.ndarray | slice:
    return ALL if teacher.columns is None else teacher.columns.cpu().numpy()


def check_teacher(
    teacher: Teacher,
    rows: Dataset,
    *,
    samples: int = 500,
    allow_weak: bool = False,
    device: torch.device | str = "cpu",
) -> float:
    """Print and return the teacher's top-1 accuracy on a few hundred random samples, seen through its own view.

    Raises:
        InputError: it is near chance, less than three standard deviations above 1 / C, and not `allow_weak`.
    """
    rows = rows.shuffle(seed=0).select(range(min(samples, len(rows))))
    logits, labels, _ = predict(teacher.to(torch.device(device)).model, rows, teacher.view, device=device)
    logits = logits[:, _columns(teacher)]
    accuracy, chance = float((logits.argmax(-1) == labels).mean()), 1 / logits.shape[-1]
    if PartialState().is_main_process:
        print(f"{teacher.name}: top-1 {accuracy:.1%} on {len(rows)} samples")
    if accuracy < chance + 3 * (chance * (1 - chance) / len(rows)) ** 0.5 and not allow_weak:
        raise InputError(
            f"the teacher's top-1 accuracy is {accuracy:.1%} on {len(rows)} samples, near chance ({chance:.1%}): its "
            "classes may stand in another order, its image processor may not be its own, or it never learned such "
            "images; mend that with --label_map or another --teacher, or distil it with --allow_weak_teacher."
        )
    return accuracy


def side_by_side(
    student: nn.Module,
    teachers: Sequence[Teacher],
    rows: Dataset,
    view: View,
    *,
    weights: Sequence[float] | None = None,
    labelled: bool = True,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """The student's size and speed, its `agreement` with the teachers, and every number of each of these.

    Without labels of its own (not `labelled`) a teacher has size and speed only.
    """
    kept = {"parameters", "flops", "images_per_second"}
    logits, numbers = measure(student, rows, view, device=device)
    metrics: dict[str, Any] = {key: numbers[key] for key in numbers if key in kept}
    answers, by_name = [], {}
    for teacher in teachers:
        answer, numbers = measure_teacher(teacher, rows, device=device)
        answers.append(torch.from_numpy(answer))
        by_name[teacher.name] = {key: value for key, value in numbers.items() if labelled or key in kept}
    if teachers:
        together = mean_prediction(answers, weights).argmax(-1).numpy()
        metrics |= {"agreement": float((logits.argmax(-1) == together).mean()), "teachers": by_name}
    return metrics


@torch.no_grad()
def size_of(model: nn.Module, view: View) -> dict[str, int]:
    """`parameters`, and `flops` of one image's forward pass (two for each multiply-add), at the view's size."""
    parameter = next(model.parameters())
    pixels = torch.zeros(1, 3, *view.size, dtype=parameter.dtype, device=parameter.device)
    training = model.training
    with FlopCounterMode(display=False) as counter:
        model.eval()(pixels)
    model.train(training)
    return {"parameters": sum(p.numel() for p in model.parameters()), "flops": counter.get_total_flops()}
