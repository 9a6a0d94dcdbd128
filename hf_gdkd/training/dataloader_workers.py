"""DataLoader workers: how many by default, how long a step waits for them, and what happens when one dies or hangs.

A worker that dies (killed, out of memory) or hangs is heard between optimizer steps, when the state is consistent:
torch raises in a handler of SIGCHLD, so anywhere, also where half of the weights are updated.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.utils.data import Dataset, TensorDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import first_sentence

MOST_WORKERS = 8
FEWEST_VALUES = 30_000_000  # of all samples of a data set: 200 images of 224 x 224, 9,800 of 32 x 32
FEWEST_SAMPLES = 1_000  # where the size of a sample is not known

_held: Callable | int | None = None  # torch's handler, while it is held back


def default_workers(rows: Dataset) -> int:
    """The number of DataLoader workers for a data set: CPU cores / processes, at most 8; 0 where they would not help.

    They would not help for samples that are in memory already (a list, a tuple, a TensorDataset), for data sets that
    are read in about a second (`FEWEST_VALUES`, `FEWEST_SAMPLES`), and beside a process that has the only core. Where
    processes are not forked (macOS, Windows), a script has to be written for workers: none by default.
    """
    if isinstance(rows, list | tuple | TensorDataset) or _start_method() != "fork" or _is_small(rows):
        return 0
    workers = min(cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), MOST_WORKERS)
    return workers if workers > 1 else 0


def _is_small(rows: Dataset) -> bool:
    if not hasattr(rows, "__len__"):
        return False
    transform = getattr(rows, "transform", None)
    view = getattr(transform, "view", None) or getattr(transform, "views", {}).get("pixel_values")
    size = getattr(transform, "size", None) or getattr(view, "size", None)  # of a crop, or of a model's input
    if size is None:
        return len(rows) < FEWEST_SAMPLES
    return len(rows) * 3 * math.prod(size) < FEWEST_VALUES


def _start_method() -> str:
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_arguments(args: TrainingArguments, rows: Dataset, *, training: bool) -> Iterator[None]:
    """Inside, unset arguments have the values for a loader of these rows: workers, which in training persist."""
    names = ("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor")
    given = {name: getattr(args, name) for name in names}
    if args.dataloader_num_workers is None:
        args.dataloader_num_workers = default_workers(rows)
        works = args.dataloader_num_workers > 0
        args.dataloader_persistent_workers = works and (training or args.dataloader_persistent_workers)
        args.dataloader_prefetch_factor = args.dataloader_prefetch_factor if works else None
    try:
        yield
    finally:
        for name, value in given.items():
            setattr(args, name, value)


def describe(workers: int) -> str:
    """The line that says what `default_workers` chose for training."""
    if workers:
        return (
            f"Training data is read by {workers} DataLoader workers in each process ({cores()} CPU cores; "
            "--dataloader_num_workers sets another number)."
        )
    return "Training data is read by the training process itself (--dataloader_num_workers sets a number of workers)."


class DataWait(TrainerCallback):
    """The share of the time of optimizer steps that is spent waiting for batches, since it was last asked for."""

    def __init__(self) -> None:
        self.waited = self.total = self.start = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, a step begins with the reading of its batches."""
        self.start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - self.start

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.total += time.perf_counter() - self.start

    def share(self) -> float:
        share = self.waited / self.total if self.total else 0.0
        self.waited = self.total = 0.0
        return round(share, 3)


class DeadWorker(Exception):
    """What torch says of a worker that died, or that did not answer in time."""


def _silent(*_: object) -> None:
    pass


def _handles_signals() -> bool:
    return hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()


def _hold_back() -> bool:
    """Keep torch from raising when a worker dies; whether it was not kept from it before."""
    global _held
    if not _handles_signals() or signal.getsignal(signal.SIGCHLD) is _silent:
        return False
    _held = signal.signal(signal.SIGCHLD, _silent)
    return True


def _let_go() -> None:
    if _handles_signals() and signal.getsignal(signal.SIGCHLD) is _silent:
        signal.signal(signal.SIGCHLD, _held)


@contextmanager
def deaf() -> Iterator[None]:
    """Inside, a worker that dies is heard in `heard` alone; afterwards, however it ends, torch raises as ever."""
    outermost = _hold_back()
    try:
        yield
    finally:
        if outermost:
            _let_go()


@contextmanager
def heard() -> Iterator[None]:
    """Inside (and inside `deaf`), a worker that dies is heard, and one that died before.

    Raises:
        DeadWorker: one died or hung; the others, which may follow it, are not heard.
    """
    try:
        try:
            _let_go()
            if callable(_held):
                _held(signal.SIGCHLD, None)
            try:
                yield
            except (OSError, EOFError):  # the batch of a worker that is just dying: torch says so in a moment
                time.sleep(1)
                raise
        finally:
            _hold_back()
    except RuntimeError as error:
        if not str(error).startswith("DataLoader "):
            raise
        raise DeadWorker(first_sentence(error)) from error
