"""The settings of a run as a file: recipe.yaml, which `--config` reads, and the command that started the run."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import yaml

from ...errors import InputError, first_sentence
from ...losses.combined import name_and_options
from ...training.loss_options import as_dict, as_words
from .distill_flags import TRAINING_DEFAULTS, DistillArguments

if TYPE_CHECKING:  # it imports the whole of training, which the flags of the other commands do without
    from ...training.config import GDKDConfig

# What only a flag may set, never a file, which may come from elsewhere: code that runs, where files and results go,
# secrets, and what replaces or continues a run.
FLAGS_ONLY = frozenset(
    """
    loss_file trust_remote_code overwrite output_dir resume_from_checkpoint teacher_cache
    push_to_hub hub_model_id hub_token hub_private_repo hub_strategy hub_always_push hub_revision
    report_to project trackio_space_id trackio_bucket_id trackio_static_space_id
    """.split()
)
UNRECORDED = FLAGS_ONLY | {"run_name", "local_rank", "profile", "preset"}
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")  # YAML 1.1 reads 1e-3 as a word


def read_settings(path: str) -> dict[str, Any]:
    """The settings of a YAML or JSON file, such as a run's recipe.yaml.

    Raises:
        InputError: the file cannot be read, an unknown name, or one that only a flag may set.
    """
    from ...training.config import GDKDConfig

    path = os.path.expanduser(path)
    try:
        with open(path, encoding="utf-8") as file:
            settings = json.load(file) if path.endswith(".json") else yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {first_sentence(error)}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} is not a mapping from names to values, as the recipe.yaml of a run is.")
    settings = with_loss_name(settings)
    known = [f.name for f in (*fields(DistillArguments), *fields(GDKDConfig)) if f.init]
    for key, value in settings.items():
        if key not in known:
            raise InputError(f"{path} has an unknown key {key!r}{closest(str(key), known)}")
        if key in FLAGS_ONLY:
            raise InputError(f"{path} sets {key}, which only a flag may: remove it, and use --{key} if you want it.")
        if any(str(word).startswith("--") for word in (value if isinstance(value, list) else [])):
            raise InputError(f"{path} has a flag among the values of {key}: remove it.")
        if isinstance(value, dict):
            settings[key] = {name: _as_number(inner) for name, inner in value.items()}
    return settings


def with_loss_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose loss is a name, and not a list or a mapping of options, which flags cannot hold."""
    settings = dict(settings)
    if isinstance(settings.get("loss"), list):
        settings["loss"], own = name_and_options(settings["loss"])
        settings["loss_options"] = as_words(own | as_dict(settings.get("loss_options")))
    for name in ("loss_options", "student_config"):
        if isinstance(settings.get(name), dict):
            settings[name] = as_words(settings[name])
    return settings


def _as_number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _FLOAT.fullmatch(value) else value


def closest(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f": did you mean {close[0]}?" if close else "; --help all lists the flags."


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as flags, so that their values are read and checked in the same way."""
    flags: list[str] = []
    for key, value in settings.items():
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def run_settings(script: DistillArguments, args: GDKDConfig) -> dict[str, Any]:
    """The settings of a run that differ from the libraries' defaults, and its loss; `--config` repeats the run."""
    from ...training.config import GDKDConfig

    given = asdict(script) | args.to_dict()
    plain = GDKDConfig(loss=args.loss, use_cpu=args.use_cpu).to_dict()  # without use_cpu, CPU processes are refused
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
    return shlex.join(["hf-gdkd", "distill", *kept])
