"""A run's arguments from its flags, a file of settings or one of the paper's recipes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from transformers import HfArgumentParser

from ...errors import InputError, first_sentence
from ...publishing.wording import WORDINGS
from ...training.config import GDKDConfig
from ..loss_file import run_loss_file
from ..presets import given_names, preset_flags
from ..recipes import recipe_settings
from .checks import check_arguments
from .distill_flags import TASK_DEFAULTS, TRAINING_DEFAULTS, DistillArguments
from .help import SETTINGS_HELP, show_help
from .settings_file import as_flags, closest, read_settings


class _Parser(HfArgumentParser):
    """An HfArgumentParser whose refusals are InputErrors."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.rstrip('.')}; --help all lists the flags.")


def parse(argv: Sequence[str] | None = None, *, needs_student: bool = True) -> tuple[DistillArguments, GDKDConfig]:
    """Arguments from flags, which override a settings file (`--config`) or one of the paper's recipes (`--recipe`).

    Raises:
        InputError: unknown flags, keys or values.
    """
    show_help("distill", argv)
    parser = _Parser([DistillArguments, GDKDConfig], prog="hf-gdkd distill", allow_abbrev=False)
    for name in SETTINGS_HELP:
        parser.add_argument(f"--{name}")
    parser.set_defaults(**TRAINING_DEFAULTS)
    argv = _at_home(sys.argv[1:] if argv is None else argv)
    flags = parser.parse_known_args(argv)[0]
    if flags.config is not None and flags.recipe is not None:
        raise InputError("--config and --recipe are alternatives: use one of them.")
    if flags.loss_file is not None:
        run_loss_file(flags.loss_file)
    if flags.config is not None:
        settings = read_settings(flags.config)
        with _naming(flags.config, settings, argv):
            return _with_preset(parser, settings, argv, needs_student)
    recipe = {} if flags.recipe is None else recipe_settings(flags.recipe, flags.loss, flags.standardize)
    if recipe and flags.preset is not None:
        raise InputError("--preset and --recipe are alternatives: use one of them.")
    return _with_preset(parser, recipe, argv, needs_student)


def _at_home(argv: Sequence[str]) -> list[str]:
    """The words with ~ as the home folder, also where the shell leaves it alone: `--student=~/model`."""
    home = os.path.expanduser("~")
    return [re.sub(r"^(--[\w-]+=)?~(?=/|$)", lambda found: (found[1] or "") + home, word) for word in argv]


@contextmanager
def _naming(path: str, settings: Mapping[str, Any], argv: Sequence[str]) -> Iterator[None]:
    """Name the settings file in an error about what it sets."""
    try:
        yield
    except InputError as error:
        words = set(re.findall(r"\w+", str(error)))
        if words & (settings.keys() - _named(argv)):
            raise InputError(f"{path}: {error}") from error
        raise


def _with_flags(parser: _Parser, settings: Mapping[str, Any], argv: list[str]) -> list[str]:
    """Settings as flags, and the flags that override them: of `loss_options` those of the same name.

    Where a flag names another loss, the options of the settings' loss go with it.
    """
    words = _at_home(as_flags(settings)) + argv
    if settings.get("loss_options") is None:
        return words
    if parser.parse_known_args(words)[0].loss != settings.get("loss", parser.get_default("loss")):
        return _with_flags(parser, {**settings, "loss_options": None}, argv)
    return [*words, "--loss_options", *settings["loss_options"], *(parser.parse_known_args(argv)[0].loss_options or [])]


def _with_preset(
    parser: _Parser, settings: Mapping[str, Any], argv: list[str], needs_student: bool
) -> tuple[DistillArguments, GDKDConfig]:
    """As `_parse`, with the settings of a preset beneath those of the user."""
    flags = parser.parse_known_args(_with_flags(parser, settings, argv))[0]
    if flags.preset is None:
        return _parse(parser, settings, argv, needs_student)
    given = given_names(flags, settings.keys() | _named(argv))
    preset = preset_flags(flags, given)
    config = preset.pop("student_config", [])  # the user's values too
    words = [*argv, "--student_config", *config] if config else argv
    script, args = _parse(parser, preset | dict(settings), words, needs_student)
    script.given = given
    return script, args


def _named(argv: Sequence[str]) -> set[str]:
    """The names of the flags among these words."""
    return {word.split("=")[0].lstrip("-").replace("-", "_") for word in argv if word.startswith("--")}


def _parse(
    parser: _Parser, settings: Mapping[str, Any], argv: list[str], needs_student: bool
) -> tuple[DistillArguments, GDKDConfig]:
    for key, value in settings.items():
        more = parser.parse_known_args(as_flags({key: value}))[1]
        if more:
            raise InputError(f"{key} takes one value, and has {1 + len(more)}: choose one.")
    parser.set_defaults(**{key: None for key, value in settings.items() if value is None})
    argv = _with_flags(parser, settings, argv)
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [option for option in parser._option_string_actions if "-" not in option[2:]]
        raise InputError(f"unknown argument {unknown[0]}{closest(unknown[0].split('=')[0], known)}")
    if flags.output_dir is None and flags.student is not None:
        parser.set_defaults(
            output_dir=os.path.join("runs", f"{os.path.basename(os.path.normpath(flags.student))}-{flags.loss}")
        )
    parser.set_defaults(**TASK_DEFAULTS.get(flags.task, {}))
    if flags.label_free:
        parser.set_defaults(ce_weight=0.0)
    if flags.streaming:
        parser.set_defaults(eval_strategy="steps", eval_steps=500, save_strategy="steps")
    if flags.early_stopping_patience is not None:
        metric = "agreement" if flags.label_free else WORDINGS[flags.task].judged
        parser.set_defaults(load_best_model_at_end=True, metric_for_best_model=metric)
    if (flags.metric_for_best_model or "").removeprefix("eval_") in ("nll", "ece"):
        parser.set_defaults(greater_is_better=False)
    try:
        script, args, _ = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except InputError:
        raise
    except (ValueError, TypeError, ImportError, RuntimeError, OSError) as error:  # what TrainingArguments refuses
        raise InputError(first_sentence(error)) from error
    check_arguments(script, args, needs_student)
    return script, args
