"""Which checkpoint a run goes on from, and whether it is of the same run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState

from .config import LOSS_OPTIONS, GDKDConfig
from .errors import InputError

# What a resumed run may not change: the student would be neither run's.
FIXED = (
    *("student", "student_revision", "teacher", "teacher_weights", "teacher_revision"),
    *("dataset", "dataset_config", "dataset_revision"),
    *("train_split", "label_map", "label_free", "on_bad_image", "seed", "loss", *LOSS_OPTIONS),
    *("crop_scale", "crop_padding", "flip", "auto_augment", "random_erasing", "cutout"),
    *("mixup_alpha", "cutmix_alpha", "repeated_augmentation"),
    *("ce_weight", "kd_weight", "kd_warmup_epochs", "kd_skip_epochs", "class_weights", "ema_decay"),
)


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in a run's folder that was written to its end; a torn one is named and passed over.

    Trainer writes trainer_state.json last, so a checkpoint that holds it whole is whole.
    """
    steps = {
        int(path.name.split("-")[1]): path for path in Path(folder).glob("checkpoint-*") if path.name[11:].isdigit()
    }
    for step in sorted(steps, reverse=True):
        try:
            TrainerState.load_from_json(str(steps[step] / "trainer_state.json"))
            return str(steps[step])
        except (OSError, ValueError, TypeError):
            print(f"{steps[step]} was not written to its end: passed over.")
    return None


def checkpoint_to_resume(args: GDKDConfig, overwrite: bool) -> str | None:
    """The checkpoint to go on from, after a look at the output folder.

    Raises:
        InputError: the folder holds a run and neither resuming nor overwriting was asked for, or there is no
            checkpoint to resume from.
    """
    folder, resume = args.output_dir, args.resume_from_checkpoint
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder} is a file: choose another --output_dir.")
    if resume is not None:
        checkpoint = resume
        if resume in ("last", "true", "True"):
            checkpoint = last_whole_checkpoint(folder)
        if checkpoint is None or not os.path.isfile(os.path.join(checkpoint, "trainer_state.json")):
            raise InputError(
                f"there is no checkpoint to resume from ({resume}) in {folder}: leave --resume_from_checkpoint out."
            )
        return checkpoint
    if overwrite:
        for path in Path(folder).glob("checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)  # another process may be faster
        return None
    holds_run = os.path.isfile(os.path.join(folder, "metrics.json")) or last_whole_checkpoint(folder) is not None
    if holds_run:
        raise InputError(
            f"folder {folder} already holds a run: choose another --output_dir, go on with "
            "--resume_from_checkpoint last, or replace it with --overwrite."
        )
    return None


def check_same_run(recipe: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """Refuse to resume with other settings than the run began with.

    Raises:
        InputError: a setting that must stay differs; the first is named with both values.
    """
    for name in FIXED:
        if (now := recipe.get(name)) != (then := earlier.get(name)):
            raise InputError(
                f"this run began with {name} {json.dumps(then)}, and is to go on with {json.dumps(now)}: give "
                f"--{name} as it was, or begin anew in another --output_dir."
            )
