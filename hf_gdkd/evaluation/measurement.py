"""How good, how large and how fast a model is on a data set.

Where torch.distributed is initialized, all processes must call these functions together: each computes its share of
the batches, and every process gets the result for all rows.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from ..data.datasets import Viewed, collate
from ..data.views import EvalTransform, View
from ..errors import InputError, first_sentence
from ..training.cached_teacher import CachedTeacher
from ..training.dataloader_workers import default_workers
from ..training.teacher import Teacher, logits_of, mean_prediction
from .metrics import agreement, classification_metrics

logger = logging.getLogger(__name__)

ALL = slice(None)  # columns, where a model's classes are the data set's


@torch.no_grad()
def predict(
    model: nn.Module,
    rows: Dataset,
    view: View,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    workers: int | None = None,
) -> tuple[np.ndarray, np.ndarray | None, float]:
    """Compute the logits (N, C) of a model for N rows; also returns the labels (N), if any, and images a second.

    With several processes the batches are those of one process, so that the logits are the same to the last bit.
    The speed is that of one process's forward passes, without its first batch if there are several.

    Args:
        model: any image classifier; it is moved to `device` and set to eval mode.
        rows: samples with `image` and, if labelled, `labels`.
        view: how the model sees an image.
        batch_size: images in a forward pass.
        device: where to compute.
        workers: processes that read and decode images; None: as many as in training.
    """
    model = model.to(device).eval()
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    batches = [range(i, min(i + batch_size, len(rows))) for i in range(0, len(rows), batch_size)]
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    own = batches[rank::processes]
    # A model that is split over the processes needs all of them to run equally often.
    own += batches[:1] * (math.ceil(len(batches) / processes) - len(own))
    samples = Viewed(rows, EvalTransform(view))
    loader = DataLoader(
        samples, batch_sampler=own, collate_fn=collate, pin_memory=torch.device(device).type == "cuda",
        num_workers=default_workers(samples) if workers is None else workers,
    )  # fmt: skip
    logits, labels, seconds, images = [], [], 0.0, 0
    for batch in tqdm(loader, desc="evaluating", leave=False, disable=rank > 0 or None):  # None: on terminals only
        pixels = batch["pixel_values"].to(device, dtype)
        start = time.perf_counter()
        answer = logits_of(model(pixels)).float().cpu()
        if len(logits) > 0 or len(own) == 1:
            seconds, images = seconds + time.perf_counter() - start, images + len(pixels)
        logits.append(_of_all_processes(answer, batch_size, device))
        if "labels" in batch:
            labels.append(_of_all_processes(batch["labels"], batch_size, device))
    joined = [np.concatenate(parts)[: len(rows)] if parts else None for parts in (logits, labels)]
    return *joined, images / seconds


def _of_all_processes(values: Tensor, batch_size: int, device: torch.device | str) -> np.ndarray:
    """A batch's values of every process, in the order of the processes; only the last batch of a loop can be ragged."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values.numpy()
    full = F.pad(values, [0, 0] * (values.ndim - 1) + [0, batch_size - len(values)]).to(device)
    dist.all_gather(parts := [torch.empty_like(full) for _ in range(dist.get_world_size())], full)
    return torch.cat(parts).cpu().numpy()


def measure(
    model: nn.Module, rows: Dataset, view: View, *, columns: np.ndarray | slice = ALL, **options: Any
) -> tuple[np.ndarray, dict[str, float | None]]:
    """Compute a model's logits (N, C) in the data set's label space, and its numbers.

    These are top1, top5, nll and ece (if there are labels), parameters, flops and images_per_second.

    Args:
        model, rows, view, options: as in `predict`.
        columns: index (C,) of the model's class for each class of the data set; all: they are the same.
    """
    logits, labels, speed = predict(model, rows, view, **options)
    logits = logits[:, columns]
    numbers = {} if labels is None else classification_metrics(logits, labels)
    return logits, numbers | size_of(model, view) | {"images_per_second": speed}


def measure_teacher(
    teacher: Teacher | CachedTeacher, rows: Dataset, **options: Any
) -> tuple[np.ndarray, dict[str, float | None]]:
    """Measure a teacher as `measure` does, through its own view and in the label space that it was matched to.

    What a teacher with a cache said of the same rows before is read.
    """
    if isinstance(teacher, CachedTeacher):
        return teacher.answers(rows, partial(measure_teacher, rows=rows, **options))
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
        InputError: the accuracy is less than three standard deviations above chance, 1 / C, and not `allow_weak`.
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
            "classes may be in another order, its image processor may belong to another model, or it was not trained "
            "on such images; use --label_map or another --teacher, or accept it with --allow_weak_teacher."
        )
    return accuracy


def side_by_side(
    logits: np.ndarray,
    teachers: Sequence[Teacher],
    rows: Dataset,
    *,
    weights: Sequence[float] | None = None,
    labelled: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Measure the teachers, and how often the student, whose `logits` (N, C) are known, agrees with them.

    Returns `agreement`, with the mean prediction of several teachers, and `teachers`: the numbers of each by its name.
    Unless the rows are `labelled` these are its size and speed only. `options` as in `predict`.
    """
    answers, by_name = [], {}
    for teacher in teachers:
        answer, numbers = measure_teacher(teacher, rows, **options)
        answers.append(torch.from_numpy(answer))
        by_name[teacher.name] = numbers if labelled else size_and_speed(numbers)
    return {"agreement": agreement(logits, mean_prediction(answers, weights).numpy()), "teachers": by_name}


def size_and_speed(numbers: dict[str, float | None]) -> dict[str, float | None]:
    """Of a model's numbers, those that say nothing of labels."""
    return {key: numbers[key] for key in ("parameters", "flops", "images_per_second")}


@torch.no_grad()
def size_of(model: nn.Module, view: View) -> dict[str, int | None]:
    """Count a model's `parameters`, and the `flops` of one image's forward pass, two for each multiply-add.

    flops is None, with a warning, for a model in which torch cannot count them.
    """
    parameters = list(model.parameters())
    pixels = torch.zeros(1, 3, *view.size, dtype=parameters[0].dtype, device=parameters[0].device)
    training, trained = model.training, [p for p in parameters if p.requires_grad]
    model.eval().requires_grad_(False)  # the counter fails for modules that are passed a view of a parameter
    flops = None
    try:
        with FlopCounterMode(display=False) as counter:
            model(pixels)
        flops = counter.get_total_flops()
    except Exception as error:  # whatever a model does that the counter does not know
        logger.warning("FLOPs of %s cannot be counted: %s", type(model).__name__, first_sentence(error))
    finally:
        model.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)
    return {"parameters": sum(p.numel() for p in parameters), "flops": flops}
