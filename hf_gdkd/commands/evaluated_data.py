"""Which rows a model is evaluated on: those that its training held out, unless the flags say otherwise."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..data.teacher_cache import DESCRIPTION
from ..errors import InputError, first_sentence
from ..hub_client import HUB_ERRORS, hub_reason
from ..models.names import is_own_network, resolve_name
from ..publishing.wording import WORDINGS
from ..training.run_files import SETTINGS_FILE, read_run_settings
from .arguments.distill_flags import TASK_FLAGS, DistillArguments
from .arguments.other_flags import EVALUATION_FLAGS, Parser, evaluate_parser
from .arguments.settings_file import FLAGS_ONLY, as_flags

logger = logging.getLogger(__name__)


def parse_evaluation(argv: Sequence[str] | None = None) -> tuple[Namespace, DistillArguments]:
    """Parse the flags of `hf-gdkd evaluate`: its own options, and the data to evaluate on.

    Data flags that are not used have the values of the model's training, if that was on the same data set.

    Raises:
        InputError: no data set, or flags that do not go together.
    """
    return parse_data(evaluate_parser(), list(sys.argv[1:] if argv is None else argv), {"model": "revision"})


def parse_data(parser: Parser, argv: list[str], models: Mapping[str, str]) -> tuple[Namespace, DistillArguments]:
    """Parse a command's options, and the data; the first of `models` (with its revision's flag) that is there decides.

    Raises:
        InputError: no data set, or flags that do not go together.
    """
    options = parser.parse_args(argv)
    main = next((role for role in models if getattr(options, role) is not None), None)
    if main is None:
        raise InputError(f"there is nothing to look at: use --{' or --'.join(models)}.")
    name = getattr(options, main)
    trained, unread = _read_training(name, getattr(options, models[main], None))
    if unread is not None and options.dataset is None and not Path(name).is_dir():
        raise InputError(f"{main} {name} is not known: there is no folder of that name, and {unread}")
    _warn(name, unread)
    if trained is not None and options.task is None:
        argv = [*as_flags({"task": trained.get("task")}), *argv]
        options = parser.parse_args(argv)
    if trained is not None and (options.dataset is None or _is_same(options.dataset, trained)):
        kept = {name: trained.get(name) for name in EVALUATION_FLAGS if name not in FLAGS_ONLY}
        kept |= {"dataset": _dataset_of(trained), "label_map": _label_map_of(trained, options.teacher)}
        for name, other in (("eval_split", "validation_rows"), ("validation_rows", "eval_split")):
            if getattr(options, name) is not None:
                kept[other] = None
        for flag, value in kept.items():
            if isinstance(value, list | dict):
                raise InputError(f"the {SETTINGS_FILE} of {name} has several values as {flag}: use --{flag}.")
        options = parser.parse_args([*as_flags(kept), *argv])
    if options.dataset is None:
        raise InputError(f"{main} {name} has no {SETTINGS_FILE} that names its data set: use --dataset.")
    told = {name: value for name in EVALUATION_FLAGS if (value := getattr(options, name)) is not None}
    data, unset = DistillArguments(**told), DistillArguments()
    if data.task not in TASK_FLAGS:
        raise InputError(f"task is {data.task!r}: choose one of {', '.join(TASK_FLAGS)}.")
    for task, flags in TASK_FLAGS.items():
        for name in told.keys() & set(flags) if task != data.task else ():
            if told[name] != getattr(unset, name):
                raise InputError(f"{name} is for --task {task}, and these models do {data.task}: leave it out.")
    if options.batch_size is None:
        options.batch_size = WORDINGS[data.task].batch_size
    if data.validation_rows is not None and data.eval_split is not None:
        raise InputError("validation_rows and eval_split are alternatives: use one of them.")
    for name in ("validation_rows", "batch_size", "window"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise InputError(f"{name} is {value}: use a number of at least 1.")
    for role in ("teacher", "baseline", "student"):
        if getattr(options, role, None) is None and getattr(options, f"{role}_revision", None) is not None:
            raise InputError(f"{role}_revision is of no model: use --{role}, or leave it out.")
    if data.label_free and options.teacher is None and "model" in models:
        raise InputError(
            "without labels only the agreement with a teacher can be measured: use --teacher, or --label_free false "
            "if the data set has labels."
        )
    return options, data


def trained_with(name: str, revision: str | None) -> dict[str, Any] | None:
    """Read the settings that a model was trained with, from its folder or its repository; None if there are none.

    A folder of a teacher cache has such settings too. Where they cannot be read, a warning says why.
    """
    settings, unread = _read_training(name, revision)
    _warn(name, unread)
    return settings


def _read_training(name: str, revision: str | None) -> tuple[dict[str, Any] | None, str | None]:
    """What `trained_with` returns, and why it could not be read, if that is so."""
    path = name if Path(name, DESCRIPTION).is_file() else resolve_name(name)
    try:
        if not Path(path).is_dir():
            if is_own_network(path):
                return None, None
            path = str(Path(hf_hub_download(path, SETTINGS_FILE, revision=revision)).parent)
        settings = read_run_settings(path)
    except (*HUB_ERRORS, yaml.YAMLError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None, None
        return None, hub_reason(error, name) or first_sentence(error)
    return (settings if isinstance(settings, dict) else None), None


def _warn(name: str, unread: str | None) -> None:
    if unread is not None:
        logger.warning("The settings that %s was trained with (%s) are not known: %s", name, SETTINGS_FILE, unread)


def has_seen(trained: dict[str, Any] | None, data: DistillArguments) -> bool:
    """Whether a model with these settings was trained on the rows to evaluate on, or on some of them."""
    if trained is None or not _is_same(data.dataset, trained):
        return False
    split = trained.get("train_split", "train")
    if data.validation_rows is None:
        return data.eval_split == split
    return data.train_split == split and trained.get("validation_rows") != data.validation_rows


def _dataset_of(trained: dict[str, Any]) -> str:
    return trained.get("dataset", DistillArguments.dataset)


def _is_same(dataset: str, trained: dict[str, Any]) -> bool:
    """Whether a data set is that of the training; a folder may have been moved since, so its name decides."""
    name = _dataset_of(trained)
    return dataset == name or (Path(dataset).is_dir() and Path(dataset).resolve().name == Path(name).name)


def _label_map_of(trained: dict[str, Any], teacher: str | None) -> str | None:
    """The label map of one of the teachers of the training."""
    maps, teachers = trained.get("label_map") or [], trained.get("teacher") or []
    return next((each for name, each in zip(teachers, maps, strict=False) if name == teacher), None)
