"""What all reports of `hf-gdkd analyze` have: a folder, what they are about, and the command to try next."""

from __future__ import annotations

import os
import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..evaluation.distribution import Distribution
from ..publishing.reports import weights_digest
from ..publishing.wording import CLASSIFICATION, SEGMENTATION
from .arguments.distill_flags import TRAINING_DEFAULTS, DistillArguments
from .evaluated_data import trained_with

DEFAULT_EPOCHS = TRAINING_DEFAULTS["num_train_epochs"]
SMALL_MODELS = {CLASSIFICATION: "deit-tiny", SEGMENTATION: "segmentation/deeplabv3_resnet18"}


def check_output(folder: Path) -> None:
    """Refuse a folder that cannot be written to, before anything is computed.

    Raises:
        InputError: it is a file, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output_dir {folder} cannot be made: {error.strerror}. Use another folder.") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"output_dir {folder} cannot be written to: use another folder.")


def subject(options: Namespace, wanted: DistillArguments, shown: str) -> dict[str, Any]:
    """What a report is about: the models, the data, the Space that it is pushed to; `shown` says which rows."""
    found = {"teacher": options.teacher, "student": options.student, "dataset": wanted.dataset, "data": shown}
    if options.student is not None:
        found["student_weights"] = weights_digest(options.student)
    return found | ({} if options.push_space is None else {"space": options.push_space})


def save_averages(folder: str, found: Distribution) -> None:
    """Write averages.npz: the whole matrices (C, C), of which the page and the JSON show the largest entries."""
    averages = {name: found.average(name).astype(np.float32) for name in ("prediction", "rest", "renormalized")}
    counts = {"confusions": found.sums["confusions"].numpy().astype(np.int64)} if found.labelled else {}
    np.savez_compressed(Path(folder, "averages.npz"), **averages, **counts)


def distill_command(options: Namespace, wanted: DistillArguments) -> str:
    """The start of the command that trains a student of this teacher."""
    student = trained_with(options.student, options.student_revision) if options.student else None
    words = ["hf-gdkd", "distill", "--teacher", options.teacher, "--dataset", wanted.dataset]
    words += ["--student", (student or {}).get("student") or options.student or SMALL_MODELS[wanted.task]]
    words += ["--task", wanted.task] if wanted.task != CLASSIFICATION else []
    words += ["--teacher_cache", options.teacher_cache] if options.teacher_cache else []
    return shlex.join(words)
