"""What a training step costs with the teacher, and with a cache of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ..data.teacher_cache import TeacherCache
from ..losses import build_loss
from ..training.teacher import Teacher, logits_of
from .report import Report

TIMED = 5  # batches, after one to warm up


def describe_costs(
    report: Report, models: Mapping[str, Teacher], classes: int, *, batch_size: int, device: torch.device
) -> dict[str, Any]:
    """Add what a training step costs with the teacher and with a cache of it; returns milliseconds and megabytes."""
    teacher, student = models["teacher"], models.get("student")
    costs = {
        "teacher, live": _forward(teacher, batch_size, device),
        "teacher, from a cache": _reading(classes, batch_size),
    }
    if student is not None:
        costs["student, forward and backward"] = _training(student, classes, batch_size, device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    rows = [[name, *each.values()] for name, each in costs.items()]
    note = "memory is the peak" if device.type == "cuda" else "memory is that of weights and logits"
    report.table(
        f"What a batch of {batch_size} images costs here ({where}); {note}",
        ["part of a step", "milliseconds (median)", "slowest", "MB"],
        rows,
    )
    return {"batch_size": batch_size, "device": where, "parts": costs}


def _forward(model: Teacher, batch_size: int, device: torch.device) -> dict[str, float]:
    model.to(device)
    pixels = torch.zeros(batch_size, 3, *model.view.size, device=device)
    return _timed(lambda: model({"pixel_values": pixels}), model, device)


def _training(model: Teacher, classes: int, batch_size: int, device: torch.device) -> dict[str, float]:
    """A step without the optimizer; the model is frozen again afterwards."""
    model.to(device)
    loss, other = build_loss("kd"), torch.zeros(batch_size, classes, device=device)
    first = next(model.model.parameters())
    pixels = torch.zeros(batch_size, 3, *model.view.size, device=device, dtype=first.dtype)

    def step() -> None:
        logits = logits_of(model.model(pixels)).float()
        loss(logits if model.columns is None else logits.index_select(1, model.columns), other).backward()

    model.model.requires_grad_(True)
    try:
        return _timed(step, model, device)
    finally:
        model.model.zero_grad()
        model.model.requires_grad_(False)


def _reading(classes: int, batch_size: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        rows = list(range(batch_size))
        TeacherCache(folder, {}, rows=batch_size, classes=classes, views=1).record(
            rows, [0] * batch_size, np.random.default_rng(0).normal(size=(batch_size, classes))
        )
        cache = TeacherCache.open(folder)
        times = _times(lambda: cache.read(rows, [0] * batch_size), lambda: None)
    return times | {"megabytes": cache.size(batch_size) / 1e6}


def _timed(work: Callable[[], Any], model: Teacher, device: torch.device) -> dict[str, float]:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    times = _times(work, (lambda: torch.cuda.synchronize(device)) if on_gpu else (lambda: None))
    weights = sum(each.nbytes for each in model.model.parameters())
    return times | {"megabytes": (torch.cuda.max_memory_allocated(device) if on_gpu else weights) / 1e6}


def _times(work: Callable[[], Any], wait: Callable[[], Any]) -> dict[str, float]:
    times = []
    for _ in range(TIMED + 1):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(1000 * (time.perf_counter() - start))
    return {"milliseconds": float(np.median(times[1:])), "slowest": max(times[1:])}
