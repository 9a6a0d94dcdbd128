"""Which checkpoint a run goes on from, whether it is whole, and whether it is of the same run.

GDKDTrainer writes contents.json into a checkpoint, and Trainer, after it and before it removes older checkpoints,
trainer_state.json. So a run that is killed at any moment has a whole checkpoint as soon as it has had one. The files
are not forced to the disk: a power cut may take the newest, so keep two (`--save_total_limit 2`) where it matters.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from ..errors import InputError, TrainingError, first_sentence
from .config import LOSS_OPTIONS, GDKDConfig

CONTENTS = "contents.json"

# What a resumed run may not change: the student would be neither run's.
KEPT_ON_RESUMING = (
    *("student", "student_revision", "teacher", "teacher_weights", "teacher_revision"),
    *("dataset", "dataset_config", "dataset_revision", "streaming"),
    *("train_split", "train_rows", "validation_rows", "label_map", "label_free", "on_bad_image", "seed"),
    *("loss", *LOSS_OPTIONS),
    *("crop_scale", "crop_padding", "flip", "auto_augment", "random_erasing", "cutout"),
    *("mixup_alpha", "cutmix_alpha", "repeated_augmentation"),
    *("ce_weight", "kd_weight", "kd_warmup_epochs", "kd_skip_epochs", "class_weights", "ema_decay"),
)


def write_contents(checkpoint: str | Path) -> None:
    """Note the size of every file of a checkpoint in its contents.json."""
    folder = Path(checkpoint)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != CONTENTS]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    (folder / CONTENTS).write_text(json.dumps(sizes, indent=2), encoding="utf-8")


def is_whole(checkpoint: str | Path) -> bool:
    """Whether every file that contents.json names has its size, and trainer_state.json, which came last, is whole."""
    folder = Path(checkpoint)
    try:
        TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        sizes = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, TypeError):
        return False


def _by_step(folder: str | Path) -> dict[int, Path]:
    return {int(path.name[11:]): path for path in Path(folder).glob("checkpoint-*") if path.name[11:].isdigit()}


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in a run's folder that is whole; a torn one is named and passed over."""
    for _, checkpoint in sorted(_by_step(folder).items(), reverse=True):
        if is_whole(checkpoint):
            return str(checkpoint)
        print(f"{checkpoint} was not written to its end, or holds the weights alone: passed over.")
    return None


def remove_from(step: int, folder: str | Path) -> None:
    """Remove the checkpoints of this step and later ones: an earlier attempt left them, torn or not."""
    for other, checkpoint in _by_step(folder).items():
        if other >= step:
            shutil.rmtree(checkpoint, ignore_errors=True)  # another process may be faster


@contextmanager
def saving(path: str, run: str) -> Iterator[None]:
    """What fails while `path`, of the run in folder `run`, is written becomes one sentence.

    Raises:
        TrainingError: safetensors, torch or the system could not write.
    """
    try:
        yield
    except TrainingError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:  # torch's writer raises RuntimeError
        free = shutil.disk_usage(run).free / 1e6
        last = last_whole_checkpoint(run)
        raise TrainingError(
            f"{path} could not be written, with {free:.1f} MB free on its disk: {first_sentence(error)} "
            + (f"{last} is whole: make room and go on" if last else "No checkpoint is whole: make room and begin anew")
            + " with --resume_from_checkpoint last."
        ) from error


def checkpoint_to_resume(args: GDKDConfig, overwrite: bool) -> str | None:
    """The checkpoint to go on from, after a look at the output folder; None to begin.

    `--resume_from_checkpoint last` begins where no checkpoint is whole, and says so: the same command then serves
    the first start of a job and all restarts, a kill before the first checkpoint included.

    Raises:
        InputError: the folder holds a run and neither resuming nor overwriting was asked for, or the checkpoint to
            resume from is not whole.
    """
    folder, resume = args.output_dir, args.resume_from_checkpoint
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder} is a file: choose another --output_dir.")
    finished = os.path.isfile(os.path.join(folder, "metrics.json"))
    if resume in ("last", "true", "True"):
        checkpoint = last_whole_checkpoint(folder)
        if checkpoint is None and finished and not overwrite:
            raise InputError(
                f"folder {folder} holds a finished run and no checkpoint: choose another --output_dir, or replace it "
                "with --overwrite."
            )
        if checkpoint is None:
            print(f"{folder} holds no whole checkpoint: the run begins anew.")
        return checkpoint
    if resume is not None:
        if not is_whole(resume):
            raise InputError(
                f"{resume} is no whole checkpoint: give --resume_from_checkpoint last for the last whole one of "
                f"{folder}, or leave it out."
            )
        return resume
    if overwrite:
        remove_from(0, folder)
        return None
    if finished or last_whole_checkpoint(folder) is not None:
        raise InputError(
            f"folder {folder} already holds a run: choose another --output_dir, go on with "
            "--resume_from_checkpoint last, or replace it with --overwrite."
        )
    return None


def check_same_run(settings: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """Refuse to resume with other settings than the run began with.

    Raises:
        InputError: a setting that must stay differs; the first is named with both values.
    """
    for name in KEPT_ON_RESUMING:
        if (now := settings.get(name)) != (then := earlier.get(name)):
            raise InputError(
                f"this run began with {name} {json.dumps(then)}, and is to go on with {json.dumps(now)}: give "
                f"--{name} as it was, or begin anew in another --output_dir."
            )
