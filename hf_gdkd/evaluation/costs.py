"""What a training step costs with the teacher, and with a cache of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from ..data.teacher_cache import TeacherCache
from ..losses import build_loss
from ..training.teacher import Teacher, logits_of
from .peak_memory import peak_mb_during
from .report import Report

TIMED = 5  # batches, after one to warm up


def describe_costs(
    report: Report,
    models: Mapping[str, Teacher],
    classes: int,
    *,
    batch_size: int,
    device: torch.device,
    cacheable: bool = True,
) -> dict[str, Any]:
    """Add what a training step costs with the live teacher and with a cache of it; returns the numbers of each part.

    These are milliseconds (the median, and the slowest) and megabytes: the peak of what is allocated, with the
    weights of the models that take part and, for a step, the two moments that AdamW keeps of each of the student's.
    Images have the size that each model's image processor makes; those of segmenters are not `cacheable`.
    """
    teacher, student = models["teacher"], models.get("student")
    costs = {}
    with tempfile.TemporaryDirectory() as folder:
        live = _forward(teacher, batch_size, device)
        costs["teacher, live"] = _measured(live, device, _megabytes(teacher))
        if cacheable:
            cached = _reading(folder, classes, batch_size)
            costs["teacher, from a cache"] = _measured(cached, device)
        if student is not None:
            step, kept = _step(student, batch_size, device), 3 * _megabytes(student)
            student.model.requires_grad_(True)
            costs["student, forward and backward"] = _measured(step, device, kept)
            costs["a step, live"] = _measured(lambda: (live(), step()), device, kept + _megabytes(teacher))
            if cacheable:
                costs["a step, from a cache"] = _measured(lambda: (cached(), step()), device, kept)
            student.model.requires_grad_(False)
    threads = f"{(number := torch.get_num_threads())} thread{'s' if number > 1 else ''}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads}"
    report.table(
        f"What a batch of {batch_size} images costs here ({where}), the update of the weights left out",
        ["part of a step", "milliseconds (median)", "slowest", "peak memory, MB"],
        [[name, *each.values()] for name, each in costs.items()],
    )
    return {"batch_size": batch_size, "device": where, "parts": costs}


def _forward(model: Teacher, batch_size: int, device: torch.device) -> Callable[[], Any]:
    model.to(device)
    pixels = torch.zeros(batch_size, 3, *model.view.size, device=device)
    return lambda: model({"pixel_values": pixels})


def _step(model: Teacher, batch_size: int, device: torch.device) -> Callable[[], Any]:
    """A student's forward and backward pass, of which no gradient stays."""
    model.to(device)
    loss, first = build_loss("kd", dim=1), next(model.model.parameters())
    pixels = torch.zeros(batch_size, 3, *model.view.size, device=device, dtype=first.dtype)

    def step() -> None:
        logits = logits_of(model.model(pixels)).float()
        logits = logits if model.columns is None else logits.index_select(1, model.columns)
        loss(logits, torch.zeros_like(logits)).backward()
        model.model.zero_grad()

    return step


def _reading(folder: str, classes: int, batch_size: int) -> Callable[[], Any]:
    rows, views = list(range(batch_size)), [0] * batch_size
    cache = TeacherCache(folder, {}, rows=batch_size, classes=classes, views=1)
    cache.record(rows, views, np.random.default_rng(0).normal(size=(batch_size, classes)))
    cache = TeacherCache.open(folder)
    return lambda: torch.from_numpy(cache.read(rows, views)[0]).clone()


def _megabytes(model: Teacher) -> float:
    return sum(each.nbytes for each in model.model.parameters()) / 1e6


def _measured(work: Callable[[], Any], device: torch.device, kept: float = 0.0) -> dict[str, float]:
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    megabytes, times = peak_mb_during(work, device) + kept, []  # which also warms up
    for _ in range(TIMED):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(1000 * (time.perf_counter() - start))
    return {"milliseconds": float(np.median(times)), "slowest": max(times), "megabytes": megabytes}
