"""What a CPU can say: ratios, by turns, of one thread's own time, so that other work on the machine slows all alike."""

from __future__ import annotations

import contextlib
import io
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import timm
import torch
from tqdm import tqdm

from hf_gdkd.losses import build_loss
from hf_gdkd.scripts import benchmark_losses

from . import steps
from .rows import Rows
from .steps import Job

LOSSES = ["kd", "dkd", "gdkd", "gdkd3", "dist"]
LOSS_SHAPES = [(256, 1000), (64, 100), (128, 21841), (4, 19, 128, 256)]  # classes in dimension 1
GROWTH = {  # what grows, and the (batch, classes, k) of the loss
    "batch": [(n, 1000, 5) for n in (16, 64, 256, 1024)],
    "classes": [(64, n, 5) for n in (10, 100, 1000, 21841)],
    "k": [(64, 1000, n) for n in (1, 5, 20, 100)],
}
IMAGE_SIZES = (32, 48, 64, 96)
VIT = {"patch_size": 4, "num_classes": 100, "embed_dim": 192, "num_heads": 6}
WAYS: dict[str, Callable[[Job], list[float]]] = {
    "hand-written gdkd": lambda job: steps.by_hand(job, "gdkd"),
    "hand-written kd": lambda job: steps.by_hand(job, "kd"),
    "timm kd": steps.by_timm,
    "bare Trainer kd": steps.by_bare_trainer,
    **{f"GDKDTrainer {loss}": partial(steps.by_trainer, loss=loss) for loss in ("ce", "kd", "gdkd", "dist", "fitnet")},
    "GDKDTrainer cached": lambda job: steps.by_trainer(job, "gdkd", cached=True),
}
COMPARED = {  # each way, and what it is measured against
    "GDKDTrainer gdkd": ["hand-written gdkd", "timm kd", "GDKDTrainer ce"],
    "GDKDTrainer kd": ["timm kd", "bare Trainer kd", "GDKDTrainer ce"],
    "GDKDTrainer dist": ["GDKDTrainer ce"],
    "GDKDTrainer fitnet": ["GDKDTrainer ce"],
    "GDKDTrainer cached": ["GDKDTrainer ce", "GDKDTrainer gdkd"],
}


def measure(path: Path, *, seconds: float, tiny: bool = False) -> list[str]:
    """Write rows for about so many seconds, a share for each part; nothing is ever missing."""
    torch.set_num_threads(1)
    rows = Rows(path)
    trainer_steps(rows, seconds * 0.45, least_ms=5 if tiny else 200)
    image_sizes(rows, seconds * 0.1)
    growth(rows, seconds * 0.1)
    losses(rows, seconds * 0.35, LOSS_SHAPES[1:2] if tiny else LOSS_SHAPES)
    return []


def trainer_steps(rows: Rows, seconds: float, least_ms: float) -> None:
    """Ways to train the same two vision transformers, with steps of at least so many milliseconds."""
    job = vit_job(32, 2)
    while (ms := statistics.median(steps.by_hand(job, "gdkd"))) < least_ms:
        job = vit_job(32, max(len(job.batch["labels"]) + 1, int(len(job.batch["labels"]) * min(2, least_ms / ms))))
    times = by_turns({name: partial(way, job) for name, way in WAYS.items()}, seconds, "steps")
    setting = f"batch {len(job.batch['labels'])}"
    for name, others in COMPARED.items():
        for other in others:
            rows.add("steps", name, times[name], setting=setting, against=(other, times[other]))


def vit_job(size: int, batch: int) -> Job:
    """A vision transformer of 6 blocks, and a teacher of 12."""
    torch.manual_seed(0)
    student, teacher = (timm.create_model("vit_tiny_patch16_224", img_size=size, depth=d, **VIT) for d in (6, 12))
    data = {"pixel_values": torch.randn(batch, 3, size, size), "labels": torch.randint(100, (batch,))}
    return Job(student, teacher.requires_grad_(False).eval(), data, steps=3, warm_up=2)


def image_sizes(rows: Rows, seconds: float) -> None:
    """What distillation adds to plain fine-tuning as images grow."""
    for size in IMAGE_SIZES:
        job = vit_job(size, 4)
        ways = {loss: partial(steps.by_trainer, job, loss) for loss in ("gdkd", "ce")}
        times = by_turns(ways, seconds / len(IMAGE_SIZES), f"{size} pixels")
        rows.add("growth with image size", "step", times["gdkd"], setting=str(size), against=("ce", times["ce"]))


def growth(rows: Rows, seconds: float) -> None:
    """The loss beside plain KD as one of batch, classes and k grows."""
    points = [(what, point) for what, some in GROWTH.items() for point in some]
    for what, (batch, classes, k) in points:
        g = torch.Generator().manual_seed(0)
        student, teacher = 3 * torch.randn(2, batch, classes, generator=g)
        labels = torch.randint(classes, (batch,), generator=g)
        both = {"gdkd": build_loss("gdkd", k=k), "plain kd": partial(benchmark_losses.plain_kd, dim=1)}
        ways = {
            name: partial(_repeat, partial(benchmark_losses.milliseconds, loss, student, teacher, labels))
            for name, loss in both.items()
        }
        times = by_turns(ways, seconds / len(points), f"{what} {batch} x {classes}, k {k}")
        setting = str({"batch": batch, "classes": classes, "k": k}[what])
        rows.add(f"growth with {what}", "gdkd", times["gdkd"], setting=setting, against=("plain kd", times["plain kd"]))


def _repeat(once: Callable[[], float]) -> list[float]:
    return [once() for _ in range(5)]


def losses(rows: Rows, seconds: float, shapes: list[tuple[int, ...]]) -> None:
    """Forward and backward of the losses beside plain KD, eager and compiled, and the memory that they take."""
    benchmark_losses.MAX_SECONDS = seconds / len(shapes) / 2 / 2  # the other half compiles
    for shape in shapes:
        for mode in ("eager", "compiled"):
            with tqdm(total=60, desc=f"{shape} {mode}", unit="round") as progress:
                found = benchmark_losses.benchmark(shape, mode, LOSSES, 60, "cpu", progress)
            for row in found:
                rows.add_row("losses", row["loss"], f"{shape}, {mode}", "plain kd", row)


def by_turns(ways: dict[str, Callable[[], list[float]]], seconds: float, title: str) -> dict[str, list[float]]:
    """Mean milliseconds of each way, once a round, in random order, for so many seconds and at least 3 rounds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in _rounds(seconds, title):
        for name in random.sample(list(ways), len(ways)):
            with contextlib.redirect_stdout(io.StringIO()):
                times[name].append(statistics.mean(ways[name]()))
    return times


def _rounds(seconds: float, title: str) -> Iterator[int]:
    end = time.monotonic() + seconds
    with tqdm(desc=title, unit="round") as progress:
        while progress.n < 3 or (time.monotonic() < end and progress.n < 100):
            yield progress.n
            progress.update()
