"""What `--help` prints: the flags in the order in which a user needs them, without importing anything slow."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from ...training.options import LossOptions, TrainingOptions
from ..output import ends_with_its_reader
from ..recipes import listing
from .distill_flags import (
    HUB_HELP,
    TRAINING_DEFAULTS,
    TRAINING_HELP,
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    RunArguments,
)
from .other_flags import PARSERS, help_format

EXAMPLES = """\
Distil a teacher into a smaller student:

  hf-gdkd distill --teacher google/vit-base --student deit-tiny --loss gdkd3
  hf-gdkd distill --config runs/deit-tiny-gdkd3/recipe.yaml --output_dir runs/again"""
SETTINGS_HELP = {
    "config": ("FILE", "Settings, such as a run's recipe.yaml; flags override them."),
    "recipe": ("NAME", "One of the paper's experiments (`hf-gdkd recipes` lists them)."),
}
# What only `--help all` shows.
RARE = frozenset(
    """
    cache_dtype cache_views loss_options normalize stages
    loss_file teacher_weights teacher_revision student_revision allow_weak_teacher dataset_config dataset_revision
    image_column label_column crop_padding random_erasing cutout exact_decoding repeated_augmentation
    license temperatures alpha_temperature multiplier gradient_scaling mask_ratio
    threshold class_k coupled gamma kl strategy partition mask_samples mask_classes student_layers
    teacher_layers distance_weight angle_weight embedding_size class_weights kd_skip_epochs lr_decay_epochs
    lr_decay_rate decay_all_weights teacher_dtype shard_teacher dataloader_timeout hub_strategy
    logging_nan_inf_filter remove_unused_columns train_rows profile record_gradients ignore_incorrect resize_logits
    student_config shuffle_buffer timm_optimizer binary_cross_entropy
    crop_size scale_range reduce_labels id2label palette window
    """.split()
)
_METAVARS = {"int": "N", "float": "X", "float | str": "X", "int | str": "N", "bool": ""}


def show_help(command: str, argv: Sequence[str] | None = None) -> None:
    """Print the help of a command and exit, if the arguments ask for it.

    The scripts call this before their other imports, which take seconds.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if command == "distill" and "--list_recipes" in words:
        text = listing() + "\n"
    elif not {"-h", "--help"} & set(words):
        return
    elif command == "distill":
        text = distill_help(everything="all" in words)
    else:
        text = PARSERS[command]().format_help()
    with ends_with_its_reader():
        print(text, end="")
    sys.exit(0)


def distill_help(everything: bool = False) -> str:
    """The help of `hf-gdkd distill`; `everything` adds rare flags and all of TrainingArguments, which takes seconds."""
    usage = "hf-gdkd distill --teacher NAME --student NAME [flags]"
    parser = ArgumentParser(usage=usage, description=EXAMPLES, formatter_class=help_format, add_help=False)
    for group in (ModelArguments, DataArguments, AugmentationArguments, LossOptions):
        _add(parser, group.__doc__, _shown(fields(group), everything))
    own = [f for f in (*fields(TrainingOptions), *fields(RunArguments)) if f.name not in TRAINING_HELP]
    training = _shown(own, everything)
    _add(parser, "Training", _own_help(TRAINING_HELP) + training)
    _add(parser, "Hub", _own_help(HUB_HELP))
    more = {
        "num_processes": ("N", "Processes to start, in place of one per GPU (also with --use_cpu)."),
        "help": ("[all]", "This help; all: every flag, with those of TrainingArguments."),
    }
    _add(parser, "Settings", _own_help(SETTINGS_HELP | more))
    if everything:
        _add(parser, "All of transformers.TrainingArguments", _shown(_of_transformers(), everything))
    return parser.format_help()


def _of_transformers() -> list[Field]:
    from transformers import TrainingArguments

    ours = {f.name for f in (*fields(TrainingOptions), *fields(LossOptions))}
    return [
        f for f in fields(TrainingArguments) if f.init and f.name not in ours | TRAINING_HELP.keys() | HUB_HELP.keys()
    ]


def _own_help(rows: dict[str, tuple[str, str]]) -> list[tuple[str, str, str]]:
    return [(name, metavar, _with_default(text, TRAINING_DEFAULTS.get(name))) for name, (metavar, text) in rows.items()]


def _shown(some: Iterable[Field], everything: bool) -> list[tuple[str, str, str]]:
    """Name, metavar and help of each field; of those that are not rare unless `everything` is wanted."""
    return [
        (
            f.name,
            _metavar(str(f.type)),
            _with_default(f.metadata.get("help", ""), TRAINING_DEFAULTS.get(f.name, f.default)),
        )
        for f in some
        if everything or f.name not in RARE
    ]


def _metavar(kind: str) -> str:
    inner = re.sub(r"\s*\|\s*None|list\[|\]", "", kind)
    if inner == "bool" and kind != "bool":
        return "{true,false}"
    return _METAVARS.get(inner, "NAME") + (" ..." if kind.startswith("list") else "")


def _with_default(text: str, default: Any) -> str:
    text = " ".join(text.split())
    if default in (None, MISSING, False, "", 0) or "default" in text:
        return text
    return (
        f"{text.rstrip('.')} (default: {default:g})."
        if isinstance(default, float)
        else f"{text.rstrip('.')} (default: {default})."
    )


def _add(parser: ArgumentParser, title: str, rows: list[tuple[str, str, str]]) -> None:
    group = parser.add_argument_group(title)
    for name, metavar, text in rows:
        value = {"metavar": metavar} if metavar else {"action": "store_true"}
        group.add_argument(f"--{name}", help=text.replace("%", "%%"), **value)
