"""The jobs of a comparison done as stacks: from their flags to trainers, pixels and results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import set_seed

from ..commands.arguments.parsing import parse
from ..commands.arguments.settings_file import as_flags
from ..commands.build import training_data
from ..commands.teachers import prepare_teachers
from ..data.datasets import Viewed, collate
from ..data.loading import Data
from ..data.segmentation_views import view_of
from ..data.views import EvalTransform, View
from ..errors import InputError
from ..models.loading import load_processor
from ..tasks.registry import task_of
from ..tasks.task import Source
from ..training.options import LOSS_OPTIONS
from ..training.teacher import Teacher
from ..training.trainer import GDKDTrainer
from .spec import ONCE, Job, Metrics, Settings
from .stack import Stack

EVERY = 8  # epochs between evaluations
WAIT = 600  # seconds for pixels that another process records

# What the runs of a stack may differ in: seed, loss, what is saved, and where the teacher's logits come from.
MAY_DIFFER = {
    *("seed", "loss", "loss_options", "ce_weight", "kd_weight", "label_smoothing_factor", *LOSS_OPTIONS),
    *("teacher", "teacher_cache", "metric_for_best_model", "save_only_model", "save_total_limit", *ONCE),
}


def do_stacked(jobs: Sequence[Job], pixels: Path, test_split: str | None) -> None:
    """Do the jobs that are not done, those that differ in `MAY_DIFFER` alone as one stack in one process.

    Args:
        jobs: of one comparison.
        pixels: folder of what training sees; other processes record it once for all stacks.
        test_split: what the students are tested on; None: they are not.
    """
    stacks: dict[str, list[Job]] = {}
    views: dict[Path, tuple[Job, int]] = {}
    for job in jobs:
        if job.result() is None:
            shared = {key: value for key, value in job.flags.items() if key not in MAY_DIFFER}
            stacks.setdefault(json.dumps(shared, sort_keys=True), []).append(job)
            folder, number = views_folder(pixels, job), job.flags.get("cache_views") or job.flags["num_train_epochs"]
            views[folder] = (job, max(number, views.get(folder, (job, 0))[1]))
    context = get_context("spawn")
    with (
        ProcessPoolExecutor(len(views) or 1, context) as recorders,
        ProcessPoolExecutor(len(stacks) or 1, context) as pool,
    ):
        recorded = [recorders.submit(record_views, job, pixels, range(number)) for job, number in views.values()]
        trained = [pool.submit(train_stacked, stack, pixels, test_split) for stack in stacks.values()]
        for done in [*recorded, *trained]:  # a stack waits for what is recorded, so an error there comes first
            done.result()


class Rows:
    """What the jobs of a data set have in common in this process: rows by seed, and the teacher."""

    def __init__(self) -> None:
        self.data = lru_cache(self._data)
        self.teacher = lru_cache(self._teacher)

    def _data(self, flags: str, seed: int) -> Data:
        script, _ = parse(as_flags(json.loads(flags) | {"seed": seed, "output_dir": "unused"}))
        return task_of(script.task).load_data(script.dataset, **script.data_options(), seed=seed)

    def _teacher(self, flags: str) -> list[Teacher]:
        script, args = parse(as_flags(json.loads(flags) | {"output_dir": "unused"}))
        data = self.of(json.loads(flags))
        _, view = student_of(script, data)
        return prepare_teachers(script, args, data, view)

    def of(self, flags: Settings) -> Data:
        kept = {k: flags[k] for k in ("dataset", "eval_split", "train_rows", "validation_rows") if k in flags}
        return self.data(json.dumps(kept | {"student": flags["student"], "loss": "ce"}), flags["seed"])

    def trainer(self, job: Job) -> tuple[GDKDTrainer, View]:
        """The trainer that distill.py makes of the flags, before it trains."""
        left = ("teacher_cache", "metric_for_best_model", "save_only_model", "save_total_limit")
        flags = {key: value for key, value in job.flags.items() if key not in left} | ONCE
        script, args = parse(as_flags(flags | {"output_dir": str(job.folder)}))
        set_seed(args.seed)
        data = self.of(flags)
        teachers = []
        if args.loss != "ce":
            kept = ("dataset", "eval_split", "train_rows", "validation_rows", "student", "teacher")
            kept += ("allow_weak_teacher", "use_cpu")
            of = {key: flags[key] for key in kept if key in flags} | {"loss": "kd", "seed": 0}
            with torch.random.fork_rng():
                teachers = self.teacher(json.dumps(of))
        student, view = student_of(script, data)
        train = training_data(script, args, data, view, teachers)
        start = script.student_init != "random" or script.student_config
        if start or len(teachers) > 1 or train.mix or train.repeats > 1 or len(train.transform.views) > 1:
            raise InputError(
                f"{job.folder} cannot be one of a stack, which has students of random weights, one teacher that sees "
                "what they see, and no mixing or repeated augmentation: train it without --stacked."
            )
        processor = load_processor(script.student, init="random")
        trainer = GDKDTrainer(
            student, teachers[0] if teachers else None, args, train_dataset=train, processing_class=processor,
            data_collator=collate,
        )  # fmt: skip
        return trainer, view


def student_of(script: object, data: Data) -> tuple[torch.nn.Module, View]:
    student = task_of(script.task).load_student(Source(script.student), data.label_names, init="random")
    return student, view_of(load_processor(script.student, init="random"), student)


def views_folder(folder: Path, job: Job) -> Path:
    """Where the pixels of a job's seed are."""
    return folder / f"{Path(job.flags['dataset']).name}-seed{job.flags['seed']}"


def record_views(job: Job, folder: Path, views: range) -> None:
    """Write the views that training sees, of all rows in their own order, 8 bits, (rows, 3, H, W), a file a view."""
    torch.set_num_threads(1)
    folder = views_folder(folder, job)
    folder.mkdir(parents=True, exist_ok=True)
    trainer, _ = Rows().trainer(job)
    data = trainer.train_dataset.unnormalized()
    np.save(folder / "labels.npy", np.array([int(label) for label in trainer.train_dataset.rows.rows["labels"]]))
    for view in views:
        if not (path := folder / f"{view:03}.npy").exists():
            loader = DataLoader(data.with_view(view, live=True), 500, collate_fn=collate)
            np.save(part := folder / f"{view:03}.part.npy", np.concatenate([b["pixel_values"].numpy() for b in loader]))
            part.rename(path)


def orders(trainer: GDKDTrainer, epochs: int) -> list[list[list[int]]]:
    """The rows of every batch of every epoch, as the trainer's own loader has them."""
    loader, found = trainer.get_train_dataloader(), []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        found.append([list(batch) for batch in loader.batch_sampler])
    return found


def epoch_batches(stack: Stack, order: Sequence, folders: Sequence[Path], view: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch for every seed, on the device."""
    pixels, labels = [], []
    for rows, folder in zip(order, folders, strict=True):
        index = np.concatenate(rows)
        pixels.append(torch.from_numpy(_waited_for(folder / f"{view:03}.npy")[index]))
        labels.append(torch.from_numpy(_waited_for(folder / "labels.npy")[index]))
    pixels, labels = torch.stack(pixels).to(stack.device), torch.stack(labels).to(stack.device)
    student = stack.trainers[0].train_dataset.transform.views["pixel_values"]
    pixels = student.normalize(pixels.flatten(0, 1)).unflatten(0, labels.shape)
    yield from zip(pixels.split(len(order[0][0]), 1), labels.split(len(order[0][0]), 1), strict=True)


def _waited_for(path: Path) -> np.ndarray:
    end = time.monotonic() + WAIT
    while not path.exists():
        if time.monotonic() > end:
            raise FileNotFoundError(path)
        time.sleep(0.05)
    return np.load(path, mmap_mode="r")


def train_stacked(jobs: Sequence[Job], pixels: Path, test_split: str | None) -> None:
    """Do jobs of one stack, and with a test split their tests: each leaves train.json and test.json."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")  # TF32, as convolutions have it anyway
    shared = Rows()
    made = [shared.trainer(job) for job in jobs]
    trainers, views = [trainer for trainer, _ in made], jobs[0].flags.get("cache_views")
    first = trainers[0]
    epochs = int(first.args.num_train_epochs)
    by_seed = {}
    for trainer, job in zip(trainers, jobs, strict=True):
        if trainer.args.seed not in by_seed:  # held-out rows may be others, too
            held_out = _exact(shared.of(job.flags), made[0][1])
            by_seed[trainer.args.seed] = (orders(trainer, epochs), views_folder(pixels, job), *held_out)
    order, folders, *held_out = zip(*by_seed.values(), strict=True)
    stack = Stack(trainers, sum(len(batches) for batches in order[0]))
    held_out = [torch.stack(each).to(stack.device) for each in held_out]
    best, kept, last = torch.full((len(jobs),), -1.0, device=stack.device), stack.weights(), None
    for epoch in range(epochs):
        stack.train(epoch_batches(stack, [each[epoch] for each in order], folders, epoch % (views or epochs)))
        if epoch % EVERY != EVERY - 1 and epoch < epochs - 1:
            continue
        last = stack.accuracy(*held_out)
        better = last > best
        best = torch.where(better, last, best)
        for name, value in stack.weights().items():
            kept[name] = torch.where(better.view(-1, *[1] * (value.ndim - 1)), value, kept[name])
    finite = stack.finite().tolist()
    for j, job in enumerate(jobs):
        extra = sum(p.numel() for p in trainers[j].projections.parameters())
        found: Metrics = {
            "top1": last[j].item(),
            "best_top1": best[j].item(),
            "extra_parameters": extra,
            "epochs": epochs,
        }
        job.leave({"metrics": found} if finite[j] else {"error": "the weights are not finite"})
    if test_split is None:
        return
    test = _exact(shared.of(jobs[0].test(test_split).flags), made[0][1])
    test = [each.to(stack.device).expand(len(by_seed), *each.shape) for each in test]
    scores = {"last": stack.accuracy(*test).tolist()}
    stack.load(kept)
    scores["best"] = stack.accuracy(*test).tolist()
    for j, job in enumerate(jobs):
        if finite[j]:
            job.test(test_split).leave({"metrics": {when: {"top1": each[j]} for when, each in scores.items()}})


def _exact(data: Data, view: View) -> tuple[Tensor, Tensor]:
    """All evaluation rows as the student's image processor makes them, and their labels."""
    loader = DataLoader(Viewed(data.eval, EvalTransform(view)), 500, collate_fn=collate)
    batches = [(batch["pixel_values"], batch["labels"]) for batch in loader]
    return tuple(torch.cat(each) for each in zip(*batches, strict=True))
