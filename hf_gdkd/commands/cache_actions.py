"""What `hf-gdkd cache` does with a teacher and a data set: record, verify, estimate."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..data.cache_records import decode, encode, kept_classes
from ..data.datasets import Augmented, collate
from ..data.loading import load_data
from ..data.selection import ROW
from ..data.views import View, normalized
from ..errors import InputError
from ..models.loading import load_processor, pin_revision
from ..training.cached_teacher import CachedTeacher
from ..training.config import GDKDConfig
from ..training.dataloader_workers import default_workers
from ..training.run_files import SETTINGS_FILE, write_run_settings
from .arguments.parsing import parse
from .build import training_data
from .presets import settle_preset
from .teachers import cache_settings, name_classes, prepare_teachers, set_views

TIMED = 3  # batches
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "seconds": 1, "minutes": 60, "hours": 3600}


class _Work(NamedTuple):
    """A teacher with its cache, and the rows that it sees; `numbers` (N) are the rows' numbers in their split."""

    args: GDKDConfig
    settings: dict[str, Any]
    teacher: CachedTeacher
    rows: Augmented
    numbers: np.ndarray


def record(folder: str, flags: Sequence[str]) -> None:
    """Record the logits of a teacher for every row and view that a folder lacks; processes share the rows.

    Raises:
        InputError: what distill.py refuses; several teachers.
    """
    work = _prepare(folder, flags)
    args, cache = work.args, work.teacher.cache
    lacking = [np.flatnonzero(~cache.recorded(view)[work.numbers]) for view in range(cache.views)]
    main = args.process_index == 0
    with tqdm(total=sum(map(len, lacking)), desc="recording", unit="image", disable=not main or None) as bar:
        for view, rows in enumerate(lacking):
            for batch in _batches(work, view, rows[args.process_index :: args.world_size]):
                work.teacher(batch)
                bar.update(len(batch[ROW]) * args.world_size)
    work.teacher.flush()
    if main:
        write_run_settings(folder, work.settings)
        images = len(work.numbers)
        print(f"{folder}: {cache.views} views of {images:,} images, {in_bytes(cache.size(images))}")


def verify(folder: str, rows: int) -> tuple[float, float]:
    """Compute random rows of a cache again; returns the largest difference and the smallest cosine of their logits.

    Raises:
        InputError: the folder is not a cache, holds nothing, or not the settings that it was recorded with.
    """
    if not Path(folder, SETTINGS_FILE).is_file():
        raise InputError(f"folder {folder} has no {SETTINGS_FILE}, which says how to compute its logits again.")
    work = _prepare(folder, ["--config", str(Path(folder, SETTINGS_FILE))])
    cache, random = work.teacher.cache, np.random.default_rng()
    stored = [(view, row) for view in range(cache.views) for row in np.flatnonzero(cache.recorded(view)[work.numbers])]
    if not stored:
        raise InputError(f"the teacher cache {folder} holds no logits of this data set: record it first.")
    chosen = [stored[i] for i in random.permutation(len(stored))[:rows]]
    largest, cosines, damaged = 0.0, [], 0
    for view in sorted({view for view, _ in chosen}):
        for batch in _batches(work, view, np.array([row for v, row in chosen if v == view]), live=True):
            was, intact = cache.read(batch[ROW].tolist(), [view] * len(batch[ROW]))
            now = work.teacher.live(batch).float().cpu().numpy()
            if kept_classes(cache.dtype):  # what is stored are log-probabilities, the rest's shared equally
                now = decode(encode(now, cache.dtype), cache.dtype, cache.classes)
            damaged += int((~intact).sum())
            was, now = was[intact], now[intact]
            largest = max(largest, float(np.abs(was - now).max(initial=0)))
            cosines += ((was * now).sum(1) / np.linalg.norm(was, axis=1) / np.linalg.norm(now, axis=1)).tolist()
    print(
        f"{folder}: {len(chosen)} random rows computed again: largest difference {largest:.2g}, smallest cosine "
        f"{min(cosines, default=1):.6f}; {damaged} damaged, which the next run replaces"
    )
    return largest, min(cosines, default=1.0)


def estimate(flags: Sequence[str]) -> None:
    """Print how large a cache would be, how long the teacher takes for it, and when that pays."""
    work = _prepare("teacher-cache", flags, record=False)
    cache, images = work.teacher.cache, len(work.numbers)
    rows, times = np.arange(min(images, (TIMED + 1) * work.args.per_device_eval_batch_size)), []
    for batch in _batches(work, 0, rows, live=True):
        start = time.perf_counter()
        work.teacher.live(batch).cpu()
        times.append((time.perf_counter() - start) / len(batch[ROW]))
    seconds = float(np.median(times[1:] or times)) * images / work.args.world_size
    epochs = work.args.num_train_epochs
    print(
        f"{cache.views} views of {images:,} images, {cache.classes} classes, {cache.dtype}: "
        f"{in_bytes(cache.size(images))}.\n"
        f"Here the teacher takes {in_time(seconds)} for one view of all images, {in_time(cache.views * seconds)} for "
        f"all.\nRecorded during training, a cache saves {in_time(seconds)} in each epoch from epoch {cache.views + 1} "
        f"on, and in each epoch of every further student.\nRecorded ahead, it pays from student "
        f"{int(cache.views // epochs) + 1} on, if each trains for {epochs:g} epochs."
    )


def in_bytes(size: float) -> str:
    """A size in the unit that suits it."""
    unit = next((unit for unit in ("GB", "MB") if size >= UNITS[unit]), "kB")
    return f"{size / UNITS[unit]:,.3g} {unit}" if size < 1000 * UNITS[unit] else f"{size / UNITS[unit]:,.0f} {unit}"


def in_time(seconds: float) -> str:
    """A time in the unit that suits it."""
    unit = next((unit for unit in ("hours", "minutes") if seconds >= UNITS[unit]), "seconds")
    return f"{seconds / UNITS[unit]:.3g} {unit}"


def _prepare(folder: str, flags: Sequence[str], *, record: bool = True) -> _Work:
    script, args = parse([*flags, "--output_dir", folder], needs_student=False)
    if len(script.teacher or ()) != 1:
        raise InputError("a cache is of one teacher: use --teacher with one name, and a folder for each.")
    script.teacher_cache = [folder]
    data = load_data(script.dataset, **script.data_options(), seed=args.seed)
    script.dataset_revision = data.revision
    name_classes(script, data)
    commit = pin_revision(*script.teachers()[0])
    script.teacher_revision = commit and [commit]
    settle_preset(script, args, len(data.train))
    set_views(script, args, len(data.train), trains=False)
    source = {"revision": commit, "trust_remote_code": script.trust_remote_code}
    view = View(load_processor(script.teacher[0], **source))
    (teacher,) = prepare_teachers(script, args, data, view, check=record)
    rows = training_data(script, args, data, view, [teacher])
    return _Work(args, cache_settings(script, args, 0), teacher, rows, np.asarray(data.train[ROW]))


def _batches(work: _Work, view: int, rows: np.ndarray, *, live: bool = False) -> Iterator[dict[str, Tensor]]:
    """Batches of these rows in a view, on the device; `live`: with pixels whether their logits are known or not."""
    samples, workers = work.rows.unnormalized().with_view(view, live=live), work.args.dataloader_num_workers
    loader = DataLoader(
        Subset(samples, rows.tolist()), work.args.per_device_eval_batch_size, collate_fn=collate,
        num_workers=default_workers(samples) if workers is None else workers,
    )  # fmt: skip
    for batch in loader:
        batch = {key: value.to(work.args.device) for key, value in batch.items()}
        yield normalized(batch, samples.transform.views)
