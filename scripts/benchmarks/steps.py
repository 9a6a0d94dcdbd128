"""Training steps to time: GDKDTrainer's, a bare Trainer's, a hand-written loop's and timm's.

All do the same work: the same two models of timm, fused AdamW, linear schedule and gradient clipping, on one batch that
is on the device already, so that no data loading hides a difference. Each function takes `warm_up` and then `steps`
optimizer steps, and returns the milliseconds of each of the latter: on a GPU from events in its own queue, so that
nothing waits for the measurement; on a CPU with one thread that thread's own time; else wall time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hf_gdkd import GDKDConfig, GDKDTrainer
from hf_gdkd.data.teacher_cache import TeacherCache
from hf_gdkd.losses import build_loss
from hf_gdkd.training.cached_teacher import CachedTeacher

LEARNING_RATE, MAX_NORM = 1e-5, 1.0


@dataclass
class Job:
    """What a step is of; `batch` holds `pixel_values` (N, 3, H, W) and `labels` (N), on the models' device."""

    student: nn.Module
    teacher: nn.Module
    batch: dict[str, Tensor]
    steps: int = 10
    warm_up: int = 3  # the first step makes the optimizer's state
    bf16: bool = False
    compiled: bool = False
    logging_steps: int = 0
    micro_batches: int = 1  # of a step, into which the batch is split

    @property
    def device(self) -> torch.device:
        return self.batch["labels"].device

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()


class Clock(TrainerCallback):
    """Notes the time at the end of each step."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu, self.marks = device.type == "cuda", []
        self.now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def note(self) -> None:
        if self.on_gpu:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(self.now())

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.note()

    def milliseconds(self, steps: int) -> list[float]:
        """Of each of the last steps."""
        pairs = zip(self.marks[-steps - 1 :], self.marks[-steps:], strict=False)
        if self.on_gpu:
            torch.cuda.synchronize()
            return [start.elapsed_time(end) for start, end in pairs]
        return [(end - start) * 1e3 for start, end in pairs]


def by_trainer(
    job: Job, loss: str, *, cached: bool = False, guarded: bool = True, at_once: bool | None = None
) -> list[float]:
    """GDKDTrainer's steps.

    Args:
        job: what a step is of.
        loss: its name.
        cached: whether the teacher's logits are in the batch.
        guarded: whether the NaN guard looks.
        at_once: whether the teacher runs once for all micro-batches of a step; None: as GDKDTrainer does.
    """
    batch, teacher = job.batch, None if loss == "ce" else job.teacher
    with tempfile.TemporaryDirectory() as folder:
        if cached:
            with torch.no_grad(), job.autocast():
                batch = batch | {"teacher_logits": job.teacher(batch["pixel_values"]).float()}
            size = {"rows": len(batch["labels"]), "classes": batch["teacher_logits"].shape[1], "views": 1}
            teacher = CachedTeacher(TeacherCache(folder, {}, **size), lambda: None)
        args = GDKDConfig(loss=loss, torch_compile=job.compiled, **_arguments(job, folder))
        trainer = GDKDTrainer(job.student, teacher, args, **_data(job, batch))
        trainer._asks_at_once = trainer._asks_at_once if at_once is None else at_once
        if not guarded:
            trainer.callback_handler.callbacks.remove(trainer.finite)
            trainer.finite.note = lambda *args: None
        try:
            return _train(trainer, job)
        finally:
            _restore(job)


class BareTrainer(Trainer):
    """Plain KD as most people write it in a Trainer."""

    def __init__(self, teacher: nn.Module, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(inputs["pixel_values"])
        with torch.no_grad():
            teacher_logits = self.teacher(inputs["pixel_values"])
        return F.cross_entropy(logits, inputs["labels"]) + plain_kd(logits, teacher_logits)


def by_bare_trainer(job: Job) -> list[float]:
    """The steps of a Trainer of transformers with nothing but plain KD in its `compute_loss`."""
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(dataloader_num_workers=0, **_arguments(job, folder))
        try:
            return _train(BareTrainer(job.teacher, job.student, args, **_data(job, job.batch)), job)
        finally:
            _restore(job)


def _restore(job: Job) -> None:
    """Take off what Accelerate did to the student, so that it prepares it anew, and the teacher's compiled pass."""
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        job.student.__dict__.pop(name, None)
    job.teacher._compiled_call_impl = None


def _arguments(job: Job, folder: str) -> dict[str, object]:
    return dict(
        output_dir=folder, max_steps=job.warm_up + job.steps, per_device_train_batch_size=1, max_grad_norm=MAX_NORM,
        learning_rate=LEARNING_RATE, optim="adamw_torch_fused", lr_scheduler_type="linear", save_strategy="no",
        logging_strategy="steps" if job.logging_steps else "no", logging_steps=job.logging_steps or 1,
        report_to="none", disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False, bf16=job.bf16,
        use_cpu=job.device.type == "cpu", gradient_accumulation_steps=job.micro_batches,
    )  # fmt: skip


def _data(job: Job, batch: dict[str, Tensor]) -> dict[str, object]:
    """One item of the data set is a micro-batch; the losses on features ask for two, and want two images."""
    parts = {name: value.chunk(job.micro_batches) for name, value in batch.items()}
    step = [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]

    def collate(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return items[0] if len(items) == 1 else {name: value[:2] for name, value in items[0].items()}

    return {"train_dataset": step * (job.warm_up + job.steps), "data_collator": collate}


def _train(trainer: Trainer, job: Job) -> list[float]:
    trainer.add_callback(clock := Clock(job.device))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.milliseconds(job.steps)


def by_hand(job: Job, loss: str) -> list[float]:
    """A loop as somebody writes it for one experiment: no check, no log but the loss's sum."""
    distil = plain_kd if loss == "kd" else build_loss(loss)
    student, teacher = job.student.train(), job.teacher.eval()
    if job.compiled:
        student, teacher, distil = torch.compile(student), torch.compile(teacher), torch.compile(distil)

    def compute() -> Tensor:
        pixels = job.batch["pixel_values"]
        with job.autocast():
            logits = student(pixels)
            with torch.no_grad():
                teacher_logits = teacher(pixels)
        return F.cross_entropy(logits.float(), job.batch["labels"]) + distil(logits, teacher_logits)

    optimizer = torch.optim.AdamW(job.student.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    return _loop(job, compute, optimizer)


def by_timm(job: Job) -> list[float]:
    """timm's task for plain KD, in the loop of its training script."""
    from timm.optim import create_optimizer_v2
    from timm.task import LogitDistillationTask

    weights = {"distill_loss_weight": 1.0, "task_loss_weight": 1.0}
    task = LogitDistillationTask(
        job.student, job.teacher, nn.CrossEntropyLoss(), **weights, device=job.device, verbose=False
    )
    optimizer = create_optimizer_v2(job.student, opt="adamw", lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    if job.compiled:
        task.compile()
    task.train()

    def compute() -> Tensor:
        with job.autocast():
            return task(job.batch["pixel_values"], job.batch["labels"])["loss"]

    return _loop(job, compute, optimizer)


def _loop(job: Job, compute: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> list[float]:
    clock, total = Clock(job.device), torch.zeros((), device=job.device)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / (job.warm_up + job.steps))
    for step in range(1, job.warm_up + job.steps + 1):
        loss = compute()
        loss.backward()
        nn.utils.clip_grad_norm_(job.student.parameters(), MAX_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        total += loss.detach()
        if job.logging_steps and step % job.logging_steps == 0:
            total *= 0 * total.item()
        clock.note()
    return clock.milliseconds(job.steps)


def plain_kd(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Knowledge distillation at T = 1 as most people write it."""
    log_q, p = student_logits.float().log_softmax(-1), teacher_logits.float().softmax(-1)
    return F.kl_div(log_q, p, reduction="batchmean")


def teacher_pass(job: Job) -> list[float]:
    """The teacher's forward pass alone."""
    teacher = torch.compile(job.teacher.eval()) if job.compiled else job.teacher.eval()

    @torch.no_grad()
    def ask() -> None:
        with job.autocast():
            teacher(job.batch["pixel_values"])

    return repeated(job, ask)


def student_passes(job: Job) -> list[float]:
    """The student's forward and backward pass alone."""
    student = torch.compile(job.student.train()) if job.compiled else job.student.train()

    def learn() -> None:
        with job.autocast():
            logits = student(job.batch["pixel_values"])
        F.cross_entropy(logits.float(), job.batch["labels"]).backward()
        job.student.zero_grad()

    return repeated(job, learn)


def repeated(job: Job, work: Callable[[], object], *, queued: bool = False) -> list[float]:
    """Milliseconds of each call, after a warm-up; `queued`: of the GPU alone, which never waits for its next kernel."""
    clock = Clock(job.device)
    for _ in range(job.warm_up):
        work()
    if queued and clock.on_gpu:
        torch.cuda._sleep(200_000_000)  # about 0.1 s, in which the calls are put in the queue
    clock.note()
    for _ in range(job.steps):
        work()
        clock.note()
    return clock.milliseconds(job.steps)
