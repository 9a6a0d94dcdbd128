"""What a GPU does: images a second of each way to train, shares of the bare passes and of the memory's bandwidth.

Random weights and synthetic images on the card. The most telling figures come first, each check has a time limit of its
own, one that fails leaves the others alone, and every figure is written as soon as it is known.
"""

from __future__ import annotations

import gc
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor

from hf_gdkd.losses import build_loss

from . import steps
from .rows import Rows
from .steps import Job

NOMINAL = {"H100 80GB HBM3": 3.35, "H200": 4.8, "A100-SXM4-80GB": 2.04}  # TB/s of memory, from the data sheets
LOSS_SHAPES = [(1024, 1000), (1024, 21841), (8, 19, 512, 1024)]  # classes in dimension 1
VIT, DEIT, CNN = "vit_base_patch16_224", "deit_tiny_patch16_224", "resnet18"
TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


class Bench:
    """The checks, in their order; `tiny` tries the code on a CPU, and its figures mean nothing."""

    def __init__(self, rows: Rows, *, tiny: bool) -> None:
        self.rows, self.tiny = rows, tiny
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.measured: dict[str, float] = {}  # median milliseconds, by setting and name
        self.jobs: dict[str, Job] = {}

    def job(self, student: str, *, compiled: bool = False, rounds: int = 20) -> Job:
        """ViT-B/16 and a student at 224, batch 256, bf16."""
        if student not in self.jobs:
            torch.manual_seed(0)
            size, batch = (32, 4) if self.tiny else (224, 256)
            models = [
                timm.create_model(name, **(TINY_VIT if self.tiny and name != CNN else {})) for name in (student, VIT)
            ]
            images = torch.randn(batch, 3, size, size, device=self.device)
            labels = torch.randint(1000, (batch,), device=self.device)
            self.jobs[student] = Job(
                *(model.to(self.device) for model in models), {"pixel_values": images, "labels": labels}, bf16=True
            )
            self.jobs[student].teacher.requires_grad_(False).eval()
        return replace(self.jobs[student], compiled=compiled, steps=2 if self.tiny else rounds)

    def note(self, name: str, job: Job, run: Callable[[], list[float]]) -> None:
        """Time steps, and write images a second and the most memory that they held."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        ms = run()
        peak = torch.cuda.max_memory_allocated() / 1e6 if self.device.type == "cuda" else None
        student = next(key for key, made in self.jobs.items() if made.student is job.student)
        setting = f"{student}, {'compiled' if job.compiled else 'eager'}"
        self.measured[f"{setting}: {name}"] = statistics.median(ms)
        images = len(job.batch["labels"])
        self.rows.add("steps", name, [1e3 * images / t for t in ms], setting=setting, unit="images/s", peak_mb=peak)
        self.rows.add("step times", name, ms, setting=setting)
        bare = [self.measured.get(f"{student}, compiled: bare {which}") for which in ("teacher", "student")]
        if None not in bare and not name.startswith("bare"):
            shares = [sum(bare) / t for t in ms]
            self.rows.add("share of the bare compiled passes", name, shares, setting=setting, unit="share")

    def bandwidth(self) -> None:
        """Of a copy of 2 GB on the card, read and written."""
        source = torch.empty(1000 if self.tiny else 2 * 10**9, dtype=torch.uint8, device=self.device).random_(0, 255)
        target = torch.empty_like(source)
        times = steps.repeated(self.job(DEIT), lambda: target.copy_(source))
        speeds = [2 * len(source) / ms / 1e9 for ms in times]
        self.measured["bandwidth"] = statistics.median(speeds)
        self.rows.add("memory", "copy", speeds, unit="TB/s")

    def bare(self, student: str) -> None:
        job = self.job(student, compiled=True)
        self.note("bare teacher", job, partial(steps.teacher_pass, job))
        self.note("bare student", job, partial(steps.student_passes, job))

    def trainer(self, student: str, losses: list[str], *, compiled: bool) -> None:
        """GDKDTrainer with these losses; "cached" is gdkd from cached logits, "ce" is plain fine-tuning."""
        job = self.job(student, compiled=compiled)
        for name in losses:
            loss = "gdkd" if name == "cached" else name
            run = partial(steps.by_trainer, job, loss, cached=name == "cached")
            with reported(f"{student} {name}"):
                self.note(f"GDKDTrainer {name}", job, run)

    def others(self, *, compiled: bool) -> None:
        """What others do with the same models: a loop by hand, timm's task; and a bare Trainer of transformers."""
        job = self.job(DEIT, compiled=compiled)
        ways = {"hand-written gdkd": partial(steps.by_hand, job, "gdkd"), "timm kd": partial(steps.by_timm, job)}
        if not compiled:
            ways |= {"hand-written kd": partial(steps.by_hand, job, "kd")}
            ways |= {"bare Trainer kd": partial(steps.by_bare_trainer, job)}
        for name, run in ways.items():
            with reported(name):
                self.note(name, job, run)

    def guard(self, *, compiled: bool) -> None:
        """What the NaN guard costs a step, by turns with a run without it."""
        job = self.job(DEIT, compiled=compiled, rounds=15)
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(3):
            for guarded in times:
                times[guarded].append(statistics.mean(steps.by_trainer(job, "gdkd", guarded=guarded)))
        setting = f"{DEIT}, {'compiled' if compiled else 'eager'}"
        self.rows.add("NaN guard", "with", times[True], setting=setting, against=("without", times[False]))
        cost = [with_ - without for with_, without in zip(times[True], times[False], strict=True)]
        self.rows.add("NaN guard", "its cost", cost, setting=setting)

    def micro_batches(self) -> None:
        """A step of four micro-batches of 64 images, over which the teacher runs once, or one by one, by turns."""
        job = replace(self.job(DEIT, rounds=15), micro_batches=4)
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(3):
            for at_once in times:
                times[at_once].append(statistics.mean(steps.by_trainer(job, "gdkd", at_once=at_once)))
        against = ("one by one", times[False])
        self.rows.add("teacher's passes", "once a step", times[True], setting=f"{DEIT}, eager, 4 x 64", against=against)

    def loss(self, shape: tuple[int, ...], dtype: torch.dtype, name: str = "gdkd", *, compiled: bool = True) -> None:
        """The GPU's time, and the least traffic in it (both logits read, the gradient written) beside the bandwidth."""
        shape = (2, shape[1], *(2 for _ in shape[2:])) if self.tiny else shape
        student, teacher = (3 * torch.randn(shape, device=self.device, dtype=dtype) for _ in range(2))
        loss = partial(plain_kd, dim=1) if name == "plain kd" else build_loss(name, dim=1)
        if compiled:
            torch.compiler.reset()
            loss = torch.compile(loss, dynamic=False)

        def both_passes() -> None:
            leaf = student.detach().requires_grad_()
            loss(leaf, teacher).backward()

        job = replace(self.job(DEIT), steps=2 if self.tiny else 12)
        alone, ms = steps.repeated(job, both_passes), steps.repeated(job, both_passes, queued=True)
        setting = f"{shape}, {str(dtype).split('.')[1]}, {'compiled' if compiled else 'eager'}"
        least = 3 * student.nbytes
        self.rows.add("losses", name, ms, setting=setting)
        self.rows.add("losses, started one by one", name, alone, setting=setting)
        shares = [least / t / 1e9 / self.measured["bandwidth"] for t in ms]
        self.rows.add("losses, share of the copy's bandwidth", name, shares, setting=setting, unit="share")
        nominal = next((tbs for card, tbs in NOMINAL.items() if card in self.rows.about["device"]), None)
        if nominal is not None:
            shares = [least / t / 1e9 / nominal for t in ms]
            self.rows.add("losses, share of the nominal bandwidth", name, shares, setting=setting, unit="share")

    def channels_last(self, model: str) -> None:
        """A CNN teacher's forward pass with its weights and pixels as they are, and in channels-last order."""
        pixels = self.job(DEIT).batch["pixel_values"]
        teacher = timm.create_model(model).to(self.device).eval()
        order = (torch.contiguous_format, torch.channels_last)
        times = {}
        for layout in order:
            teacher.to(memory_format=layout)

            @torch.no_grad()
            def ask(layout: torch.memory_format = layout) -> None:
                with torch.autocast(self.device.type, torch.bfloat16):
                    teacher(pixels.contiguous(memory_format=layout))

            times[layout] = steps.repeated(self.job(DEIT), ask)
        self.rows.add("CNN teacher", "NCHW", times[order[0]], setting=f"{model}, bf16, eager")
        against = ("NCHW", times[order[0]])
        self.rows.add("CNN teacher", "channels-last", times[order[1]], setting=f"{model}, bf16, eager", against=against)

    def checks(self) -> Iterator[tuple[str, int, Callable[[], None]]]:
        """Name, seconds at most, and the check: the most telling ones first."""
        yield "bandwidth", 20, self.bandwidth
        yield "bare compiled passes", 90, partial(self.bare, DEIT)
        yield "eager steps", 60, partial(self.trainer, DEIT, ["gdkd", "kd", "ce", "cached", "dist"], compiled=False)
        yield "other loops, eager", 30, partial(self.others, compiled=False)
        yield "eager NaN guard", 30, partial(self.guard, compiled=False)
        yield "teacher once for 4 micro-batches", 40, self.micro_batches
        yield "compiled steps", 90, partial(self.trainer, DEIT, ["gdkd", "cached", "ce", "kd"], compiled=True)
        yield "other loops, compiled", 60, partial(self.others, compiled=True)
        yield "compiled NaN guard", 40, partial(self.guard, compiled=True)
        for shape in LOSS_SHAPES:
            yield f"gdkd {shape}", 40, partial(self.loss, shape, torch.float32)
        yield "fitnet", 20, partial(self.trainer, DEIT, ["fitnet"], compiled=False)
        yield "channels-last", 20, partial(self.channels_last, "resnet50")
        yield "ResNet-18, eager", 30, partial(self.trainer, CNN, ["gdkd", "ce", "cached"], compiled=False)
        for shape in LOSS_SHAPES:
            yield f"eager gdkd {shape}", 20, partial(self.loss, shape, torch.float32, compiled=False)
        yield "ResNet-18, bare compiled passes", 60, partial(self.bare, CNN)
        yield "ResNet-18, compiled", 60, partial(self.trainer, CNN, ["gdkd", "cached"], compiled=True)
        for shape in LOSS_SHAPES:
            yield f"gdkd {shape} in bfloat16", 40, partial(self.loss, shape, torch.bfloat16)
            yield f"plain kd {shape}", 30, partial(self.loss, shape, torch.float32, "plain kd")


def plain_kd(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Knowledge distillation at T = 1 as most people write it."""
    log_q, p = student.float().log_softmax(dim), teacher.float().softmax(dim)
    return torch.nn.functional.kl_div(log_q, p, reduction="sum") * (student.shape[dim] / student.numel())


def measure(path: Path, *, seconds: float, tiny: bool = False) -> list[str]:
    """Run the checks for so many seconds, writing rows to a CSV; the names of those that failed or found no time."""
    bench, end, missing = Bench(Rows(path), tiny=tiny), time.monotonic() + seconds, []
    for name, limit, check in bench.checks():
        if (left := end - time.monotonic()) < 5:
            print(f"{name}: no time left", flush=True)
            missing.append(name)
            continue
        start = time.monotonic()
        with reported(name) as failed, at_most(min(limit, left)):
            check()
        missing += [name] if failed else []
        print(f"-- {name}: {time.monotonic() - start:.1f} s", flush=True)
    return missing


@contextmanager
def reported(name: str) -> Iterator[list[str]]:
    """A failure inside is printed and noted in the list, and ends nothing but what is inside."""
    failed: list[str] = []
    try:
        yield failed
    except Exception:
        print(f"{name}: failed\n{traceback.format_exc()[-3000:]}", flush=True)
        failed.append(name)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises a TimeoutError inside after so many seconds, and again: a callback of a weak reference swallows it."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, 3)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
