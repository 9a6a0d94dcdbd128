"""Whether a run that resumes is the run that began: what it may change, and what it may not.

It may change how long it goes on (`num_train_epochs`, `max_steps`; a schedule that depends on them follows), how each
step's batch is split over processes and micro-batches, precision, compilation, the loading of data, and what it logs,
evaluates, saves and pushes. Everything else that makes the student what it is must stay: Trainer would in part ignore
another value (the optimizer's come from the checkpoint), and the student would be neither run's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .config import GDKDConfig
from .loss_options import as_dict, as_words, automatic_k
from .options import LOSS_OPTIONS

ARGUMENTS_FILE = "arguments.json"

# Of GDKDConfig: checked by the trainer, against what it noted in the checkpoint.
KEPT_ARGUMENTS = (
    *("loss", "loss_options", *LOSS_OPTIONS),
    *("ce_weight", "kd_weight", "kd_warmup_epochs", "kd_skip_epochs", "class_weights", "label_smoothing_factor"),
    *("binary_cross_entropy", "ignore_incorrect", "resize_logits"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "lr_decay_epochs", "lr_decay_rate"),
    *(
        "optim",
        "timm_optimizer",
        "optim_args",
        "weight_decay",
        "decay_all_weights",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
    ),
    *("max_grad_norm", "ema_decay", "seed", "data_seed", "train_sampling_strategy", "dataloader_drop_last"),
)
# What else the commands note in recipe.yaml: models, data and augmentation.
KEPT_SETTINGS = (
    *("student", "student_init", "student_config", "student_revision"),
    *("teacher", "teacher_weights", "teacher_revision"),
    *("task", "crop_size", "scale_range", "reduce_labels", "id2label", "palette"),
    *("dataset", "dataset_config", "dataset_revision", "streaming", "image_column", "label_column"),
    *("train_split", "train_rows", "validation_rows", "label_map", "label_free", "on_bad_image"),
    *("crop_scale", "crop_padding", "flip", "auto_augment", "random_erasing", "cutout", "exact_decoding"),
    *("mixup_alpha", "cutmix_alpha", "repeated_augmentation", "cache_views"),
)
# Noted beside the arguments.
STEP = "samples an optimizer step"
STREAM = "dataloader_num_workers of a stream"  # each worker reads a part of its own


def check_same_run(settings: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """Refuse to resume with other settings than the run began with.

    Raises:
        InputError: a setting that must stay differs; the first is named with both values.
    """
    for name in (*KEPT_SETTINGS, *KEPT_ARGUMENTS, STREAM):
        if (now := settings.get(name)) != (then := earlier.get(name)):
            raise InputError(
                f"this run began with {name} {json.dumps(then)}, and would go on with {json.dumps(now)}: use "
                f"--{name.split()[0]} as it was, or begin anew in another --output_dir."
            )
    if None not in (now := settings.get(STEP), then := earlier.get(STEP)) and now != then:
        raise InputError(
            f"this run began with {then} {STEP}, and would go on with {now}: choose --per_device_train_batch_size and "
            "--gradient_accumulation_steps so that their product with the number of processes stays, or begin anew in "
            "another --output_dir."
        )


def keep_found(args: GDKDConfig, earlier: Mapping[str, Any]) -> None:
    """Put what a run found when it began in the place of `auto` in the arguments with which it resumes.

    Args:
        args: what is set beside `auto` stays.
        earlier: the settings of the run.
    """
    before = as_dict(earlier.get("loss_options"))
    if args.loss == "auto" and "loss" in earlier:
        for name in ("loss", "ce_weight", "kd_weight", *LOSS_OPTIONS):
            if getattr(args, name) is None or name == "loss":
                setattr(args, name, earlier.get(name))
        args.loss_options = as_words(before | as_dict(args.loss_options)) or None
        args.auto_notes.append("loss auto was resolved when the run began.")
    if names := automatic_k(args.set_loss_options()):
        args.k = earlier.get("k", "auto") if args.k == "auto" else args.k
        own = as_dict(args.loss_options)
        own |= {name: before[name] for name in names if name in own and name in before}
        args.loss_options = as_words(own) or None
        args.auto_notes.append(f"{names[0]} auto was found when the run began.")
    if args.loss != "auto":
        args.complete_loss()


def write_arguments(checkpoint: str | Path, args: GDKDConfig, kept: Mapping[str, Any]) -> None:
    """Note in a checkpoint what a run that resumes from it must keep: KEPT_ARGUMENTS, and `kept`."""
    Path(checkpoint, ARGUMENTS_FILE).write_text(json.dumps(_values(args) | kept, indent=2), encoding="utf-8")


def check_arguments_kept(checkpoint: str | Path, args: GDKDConfig, kept: Mapping[str, Any]) -> None:
    """Refuse to resume from a checkpoint with other arguments than it was written with.

    Raises:
        InputError: one differs; the first is named with both values.
    """
    path = Path(checkpoint, ARGUMENTS_FILE)
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(_values(args) | kept))
        check_same_run({name: now.get(name) for name in earlier}, earlier)


def _values(args: GDKDConfig) -> dict[str, Any]:
    values = args.to_dict()
    return {name: values.get(name) for name in KEPT_ARGUMENTS}
