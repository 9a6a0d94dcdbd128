"""What the scripts share: arguments from flags and recipes, and one sentence instead of a traceback."""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, NoReturn

import torch.distributed as dist
import yaml
from accelerate import PartialState
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from ..data.augment import AUTO_AUGMENT
from ..errors import InputError, PushError, TrainingError, first_sentence
from ..hub_client import bound_waiting
from ..training.config import GDKDConfig
from .recipes import check_teacher_is_trained, settings_of

EXIT_CODES = {InputError: 2, PushError: 3, TrainingError: 4}

# Not in a recipe: where the run was, and secrets.
UNRECORDED = (
    "output_dir",
    "run_name",
    "overwrite",
    "resume_from_checkpoint",
    "local_rank",
    "hub_token",
    "push_to_hub",
)

# What the script sets that TrainingArguments would set otherwise.
TRAINING_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 64,
    "num_train_epochs": 10.0,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "weight_decay": 0.05,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 0.01,  # of all steps
}


def _field(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class DistillArguments:
    """The models and the data of one run; the loss and the training are GDKDConfig's."""

    student: str | None = _field(None, "Student: Hub id, short name, timm id or local folder.")
    teacher: list[str] | None = _field(None, "Teacher, likewise, or several; leave it out with --loss ce.")
    teacher_weights: list[float] | None = _field(None, "Weights of several teachers' probabilities; unset: the same.")
    dataset: str = _field("timm/mini-imagenet", "Data set: Hub id, local folder, or digits (embedded).")
    student_init: str = _field("pretrained", "pretrained: from weights; random: the architecture only.")
    student_revision: str | None = _field(None, "Branch, tag or commit of the student.")
    teacher_revision: list[str] | None = _field(None, "Branch, tag or commit of each teacher.")
    dataset_config: str | None = _field(None, "Configuration of the data set.")
    dataset_revision: str | None = _field(None, "Branch, tag or commit of the data set.")
    train_split: str = _field("train", "Split to train on.")
    eval_split: str | None = _field(None, "Split to evaluate on; unset: validation, valid, val or test.")
    train_rows: int | None = _field(None, "Train on so many rows of that split, drawn by --seed; unset: on all.")
    validation_rows: int | None = _field(
        None, "Evaluate on so many rows held out of the train split, drawn by --seed, in the place of --eval_split."
    )
    image_column: str | None = _field(None, "Column of the images; unset: found by its type.")
    label_column: str | None = _field(None, "Column of the labels; unset: found by name and type.")
    streaming: bool = _field(False, "Read the training images as they come; needs max_steps, which are then one epoch.")
    on_bad_image: str = _field("error", "An image that cannot be read: error, or skip, which leaves it out.")
    crop_scale: float | None = _field(None, "Smallest share of an image's area in a random crop; 1: no crop.")
    crop_padding: int = _field(0, "Pixels of black around an image, to cut a crop of its own size from; 0: crop_scale.")
    flip: bool | None = _field(None, "Flip half of the training images; unset: yes, but not digits.")
    auto_augment: str | None = _field(None, "randaugment, or the AutoAugment policy of cifar10 or imagenet.")
    random_erasing: float = _field(0.0, "Probability that a rectangle of a training image is erased.")
    cutout: int = _field(0, "Side of a square, in pixels, that is erased from every training image.")
    mixup_alpha: float = _field(0.0, "Mix training images: alpha of mixup (0.2 is usual); 0: no.")
    cutmix_alpha: float = _field(0.0, "Paste rectangles of other images: alpha of CutMix (1 is usual); 0: no.")
    repeated_augmentation: int = _field(1, "How often an image stands in an epoch, augmented anew each time.")
    early_stopping_patience: int | None = _field(
        None, "Stop after so many evaluations without a better one, and keep the best (top-1 unless told otherwise)."
    )
    label_map: list[str] | None = _field(
        None, "File (yaml, json) that maps the data set's classes to the teacher's; for several teachers one each."
    )
    label_free: bool = _field(False, "Distil without labels: no cross-entropy, the teacher's classes.")
    allow_weak_teacher: bool = _field(False, "Distil a teacher whose accuracy is near chance all the same.")
    license: str | None = _field(None, "License for the card; unset: that of the student it started from.")
    trust_remote_code: bool = _field(False, "Run model code from the Hub.")
    overwrite: bool = _field(False, "Train anew in an output folder that holds a run.")

    def teachers(self) -> list[tuple[str, str | None]]:
        """Name and revision of every teacher."""
        names = self.teacher or []
        return list(zip(names, self.teacher_revision or [None] * len(names), strict=True))

    def data_options(self) -> dict[str, Any]:
        """What `load_data` needs beside the name and the seed."""
        names = ("train_split", "eval_split", "train_rows", "validation_rows")
        names += ("image_column", "label_column", "on_bad_image", "streaming")
        options = {name: getattr(self, name) for name in names}
        options |= {"config": self.dataset_config, "revision": self.dataset_revision}
        return options | {"require_labels": not self.label_free, "ignore_labels": self.label_free}


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.rstrip('.')}; --help lists the flags.")


def parse(argv: Sequence[str] | None = None) -> tuple[DistillArguments, GDKDConfig]:
    """Arguments from flags and from a recipe: a file's (`--config`) or the paper's (`--recipe`); flags override it.

    Raises:
        InputError: unknown flags, keys or values.
    """
    parser = _Parser([DistillArguments, GDKDConfig], prog="distill.py", allow_abbrev=False)
    parser.add_argument("--config", help="Recipe (yaml or json) whose values the flags override.")
    parser.add_argument("--recipe", help="One of the paper's experiments, whose values the flags override.")
    parser.add_argument("--list_recipes", action="store_true", help="Print what --recipe takes, and stop.")
    parser.set_defaults(**TRAINING_DEFAULTS)
    argv = list(sys.argv[1:] if argv is None else argv)
    flags, unknown = parser.parse_known_args(argv)
    if flags.config is not None and flags.recipe is not None:
        raise InputError("--config and --recipe are a recipe each: give one of them.")
    recipe: dict[str, Any] = {}
    if flags.config is not None:
        recipe = _read_recipe(flags.config)
    elif flags.recipe is not None:
        recipe = settings_of(flags.recipe, flags.loss, flags.standardize)
    if recipe:
        parser.set_defaults(**{key: None for key, value in recipe.items() if value is None})
        argv = as_flags(recipe) + argv
        flags, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [option for option in parser._option_string_actions if "-" not in option[2:]]
        raise InputError(f"unknown argument {unknown[0]}{_close(unknown[0].split('=')[0], known)}")
    if flags.output_dir is None and flags.student is not None:
        parser.set_defaults(output_dir=os.path.join("runs", f"{os.path.basename(flags.student)}-{flags.loss}"))
    if flags.label_free:
        parser.set_defaults(ce_weight=0.0)
    if flags.streaming:
        parser.set_defaults(eval_strategy="steps", eval_steps=500, save_strategy="steps")
    if flags.early_stopping_patience is not None:
        metric = "agreement" if flags.label_free else "top1"
        parser.set_defaults(load_best_model_at_end=True, metric_for_best_model=metric)
    try:
        script, args, _ = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except InputError:
        raise
    except ValueError as error:  # what TrainingArguments refuses
        raise InputError(first_sentence(error)) from error
    if script.student is None:
        raise InputError("no student: give --student (a Hub id, a timm id or a local folder).")
    if script.student_init not in ("pretrained", "random"):
        raise InputError(f"student_init is {script.student_init!r}: choose pretrained or random.")
    if script.on_bad_image not in ("error", "skip"):
        raise InputError(f"on_bad_image is {script.on_bad_image!r}: choose error or skip.")
    if script.streaming:
        _check_streaming(script, args)
    if (script.teacher is None) != (args.loss == "ce"):
        raise InputError(
            f"loss {args.loss} needs a teacher: give --teacher, or train without one with --loss ce."
            if script.teacher is None
            else "loss ce takes no teacher: choose a distillation loss, or leave --teacher out."
        )
    check_teacher_is_trained(script.teacher)
    for name in ("teacher_weights", "teacher_revision", "label_map"):
        given, teachers = getattr(script, name), len(script.teacher or [])
        if given is not None and len(given) != teachers:
            raise InputError(f"{name} has {len(given)} values for {teachers} teachers: give one for each teacher.")
    if script.label_free:
        _check_label_free(script, args)
    if script.crop_scale is not None and not 0 < script.crop_scale <= 1:
        raise InputError(f"crop_scale is {script.crop_scale}: give a number above 0 and at most 1.")
    _check_rows(script)
    _check_augmentation(script, args)
    return script, args


def _check_rows(script: DistillArguments) -> None:
    if script.validation_rows is not None and script.eval_split is not None:
        raise InputError("validation_rows and eval_split are two ways to evaluate: give one.")
    for name in ("train_rows", "validation_rows"):
        if (value := getattr(script, name)) is not None and (value < 1 or script.streaming):
            what = (
                "cannot be drawn while streaming: leave one out" if script.streaming else "give a number of at least 1"
            )
            raise InputError(f"{name} is {value}: {what}.")


def _check_augmentation(script: DistillArguments, args: GDKDConfig) -> None:
    if script.crop_padding and script.crop_scale is not None:
        raise InputError("crop_padding and crop_scale are two ways to crop: give one (--crop_padding 0 takes it back).")
    if script.auto_augment not in (None, *AUTO_AUGMENT):
        raise InputError(f"auto_augment is {script.auto_augment!r}: choose one of {', '.join(AUTO_AUGMENT)}.")
    if not 0 <= script.random_erasing <= 1:
        raise InputError(f"random_erasing is {script.random_erasing}: give a probability from 0 to 1.")
    smallest = {"crop_padding": 0, "cutout": 0, "mixup_alpha": 0, "cutmix_alpha": 0, "repeated_augmentation": 1}
    for name, least in smallest.items():
        if (value := getattr(script, name)) < least:
            raise InputError(f"{name} is {value}: give a number of at least {least}.")
    if script.mixup_alpha + script.cutmix_alpha > 0 and args.loss == "dkd" and args.partition != "top1":
        raise InputError(
            "mixup and CutMix make soft labels, and dkd sets one label apart, which a mixed image has not: give --loss "
            "gdkd, or --partition top1."
        )


def _check_streaming(script: DistillArguments, args: GDKDConfig) -> None:
    if args.max_steps <= 0:
        raise InputError("--streaming needs --max_steps: how long a stream is shows only at its end.")
    if script.mixup_alpha + script.cutmix_alpha > 0 or script.repeated_augmentation > 1:
        raise InputError(
            "mixup, CutMix and repeated augmentation draw from the whole data set: leave them or --streaming out."
        )
    for name in ("kd_warmup_epochs", "kd_skip_epochs", "lr_decay_epochs"):
        epochs = getattr(args, name) or 0
        if max(epochs if isinstance(epochs, list) else [epochs]) > 1:
            raise InputError(
                f"{name} is {epochs}: with --streaming all max_steps are one epoch, so give a share of it."
            )


def _check_label_free(script: DistillArguments, args: GDKDConfig) -> None:
    if script.teacher is None:
        raise InputError("--label_free needs a teacher: give --teacher and a distillation loss.")
    if len(script.teacher) > 1:
        raise InputError("--label_free takes the classes of one teacher: give one --teacher.")
    if script.label_map is not None:
        raise InputError("--label_free keeps the teacher's own classes: leave --label_map out.")
    if args.ce_weight > 0:
        raise InputError(f"--label_free has no cross-entropy, given ce_weight {args.ce_weight}: leave it out.")
    if args.loss == "dkd" and args.partition != "top1":
        raise InputError("dkd sets the label apart, and --label_free has none: give --partition top1, or --loss gdkd.")
    if args.class_k is not None:
        raise InputError("--class_k goes by the label, and --label_free has none: give --threshold, or one --k.")


def _read_recipe(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            recipe = json.load(file) if path.endswith(".json") else yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"recipe {path} cannot be read: {first_sentence(error)}") from error
    if not isinstance(recipe, dict):
        raise InputError(f"recipe {path} is no mapping of names to values.")
    known = [f.name for f in (*fields(DistillArguments), *fields(GDKDConfig)) if f.init]
    for key in recipe:
        if key not in known:
            raise InputError(f"recipe {path} has an unknown key {key!r}{_close(str(key), known)}")
    return recipe


def _close(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f": did you mean {close[0]}?" if close else "; --help lists the flags."


def as_flags(recipe: Mapping[str, Any]) -> list[str]:
    """A recipe as flags, so that its values are read and checked as theirs are."""
    flags: list[str] = []
    for key, value in recipe.items():
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def recipe_of(script: DistillArguments, args: GDKDConfig) -> dict[str, Any]:
    """What differs from the libraries' defaults, and the loss: `--config` with it repeats the run."""
    given = asdict(script) | args.to_dict()
    plain = GDKDConfig(loss=args.loss, use_cpu=args.use_cpu).to_dict()  # without use_cpu it refuses CPU processes
    default = asdict(DistillArguments()) | plain | {"use_cpu": False}
    always = ("loss", "ce_weight", "kd_weight", *TRAINING_DEFAULTS)
    return {
        name: value
        for name, value in given.items()
        if name not in UNRECORDED and (name in always or value != default[name])
    }


def command_line(argv: Sequence[str] | None = None) -> str:
    """The command that started this run, without the Hub token."""
    words = list(sys.argv[1:] if argv is None else argv)
    hidden = [i for i, word in enumerate(words) if word.split("=")[0] == "--hub_token"]
    hidden += [i + 1 for i in hidden if "=" not in words[i]]
    kept = [word for i, word in enumerate(words) if i not in hidden]
    return shlex.join(["accelerate", "launch", "scripts/distill.py", *kept])


def quiet() -> None:
    """Our own messages plainly and once, whatever the number of processes; the libraries' only when they are errors."""
    logging.basicConfig(format="%(message)s", level="WARNING" if PartialState().is_main_process else "ERROR")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def run(main: Callable[[], Any]) -> None:
    """Run a script's main; what we know to go wrong ends it with one sentence and a code of `EXIT_CODES`."""
    bound_waiting()
    try:
        main()
        if dist.is_initialized():
            dist.destroy_process_group()  # left to the interpreter's end, its threads may abort the process
    except tuple(EXIT_CODES) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {first_sentence(error)} Make room, and give the command again.", file=sys.stderr)
        sys.exit(EXIT_CODES[TrainingError])
