"""What `hf-gdkd analyze` does for the logits of a teacher cache: no model is loaded, and no image is read.

What models and images need is not imported here, because it takes more memory than the logits do.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset

from ..data.cache_records import kept_classes
from ..data.fingerprint import fingerprint
from ..data.loading import load_data
from ..data.teacher_cache import TeacherCache
from ..errors import InputError
from ..evaluation.advice import advise
from ..evaluation.cached_answers import cached_answers
from ..evaluation.distribution import Distribution
from ..evaluation.report import Report
from ..evaluation.teacher_report import describe_teacher
from .arguments.distill_flags import DistillArguments
from .report_folder import DEFAULT_EPOCHS, distill_command, save_averages, subject

logger = logging.getLogger(__name__)


def analyze_cache(options: Namespace, wanted: DistillArguments) -> dict[str, Any]:
    """Look at what a cache holds of its teacher; writes the report and returns its numbers.

    Raises:
        InputError: a cache that is not of these data, or data that cannot be read.
    """
    state = PartialState(cpu=options.device == "cpu" or not torch.cuda.is_available())
    found, shown, names = cached_distribution(options, wanted)
    found.gather(options.device or state.device)
    numbers = subject(options, wanted, shown) | {"images": found.images}
    if not state.is_main_process:
        return numbers
    report = Report(f"Teacher: {options.teacher}", f"{found.images:,} images of {shown}")
    numbers |= describe_teacher(report, found, names)
    numbers["advice"] = advise(
        report, found, found, distill_command(options, wanted), epochs=DEFAULT_EPOCHS, features=False
    )
    save_averages(options.output_dir, found)
    report.write(options.output_dir, numbers)
    return numbers


def cached_distribution(options: Namespace, wanted: DistillArguments) -> tuple[Distribution, str, list[str]]:
    """What a cache holds of the first view of its rows, what these are called, and the classes.

    Of several processes, each has its share.

    Raises:
        InputError: a cache of other rows, of other classes, of the most probable classes only, or of no first view.
    """
    cache = TeacherCache.open(options.teacher_cache)
    if kept_classes(cache.dtype):
        raise InputError(
            f"the teacher cache {cache.folder} keeps the most probable classes only ({cache.dtype}), and an analysis "
            "needs all: record it as float16 or int8, or leave --teacher_cache out."
        )
    read = wanted.data_options() | {"eval_split": wanted.train_split, "validation_rows": None}
    data = load_data(wanted.dataset, **read, eval_only=True)
    rows, of = data.train_split_rows, cache.description
    contents = of.get("dataset", {}).get("contents")
    if len(rows) != cache.rows or contents not in (None, fingerprint(rows)):
        raise InputError(
            f"the teacher cache {cache.folder} has {cache.rows:,} rows of other images than the split "
            f"{wanted.train_split} of {wanted.dataset} with its {len(rows):,}: use the data set that it was recorded "
            "with."
        )
    labels = labels_of(rows)
    mixed = any(of.get("augmentation", {}).get(f"{name}_alpha") for name in ("mixup", "cutmix"))
    if mixed and labels is not None:
        logger.warning("The cached images are mixed: they have no labels of their own, so nothing is judged.")
        labels = None
    if labels is not None and data.label_names != of.get("labels", data.label_names):
        raise InputError(f"the teacher cache {cache.folder} is of other classes than {wanted.dataset} has.")
    recorded = np.flatnonzero(cache.recorded(0))
    if len(recorded) == 0:
        raise InputError(f"the teacher cache {cache.folder} holds no first view of an image: record it first.")
    found = Distribution(cache.classes, options.temperature)
    own = None if labels is None else labels[torch.from_numpy(recorded)]
    for each in cached_answers(cache, recorded.tolist(), own):
        found.add(each.logits["teacher"], each.labels)
    return found, f"{data.name} ({wanted.train_split}, first cached view)", data.label_names or of["labels"]


def labels_of(rows: Dataset) -> torch.Tensor | None:
    """The labels (N) of rows, without decoding an image; None where there are none."""
    if "labels" not in rows.column_names:
        return None
    labels = rows.select_columns("labels").with_format("arrow")[:]["labels"].to_numpy()
    return torch.from_numpy(np.array(labels, np.int64))
