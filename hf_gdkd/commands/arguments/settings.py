"""The settings of a run as a file: recipe.yaml, which `--config` reads, and the command that started the run."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from typing import Any

import yaml

from ...errors import InputError, first_sentence
from ...training.config import GDKDConfig
from .fields import TRAINING_DEFAULTS, DistillArguments

# Not in a recipe: where the run was, and secrets.
UNRECORDED = (
    "loss_file",
    "output_dir",
    "run_name",
    "overwrite",
    "resume_from_checkpoint",
    "local_rank",
    "hub_token",
    "push_to_hub",
)


def read_settings(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            recipe = json.load(file) if path.endswith(".json") else yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"recipe {path} cannot be read: {first_sentence(error)}") from error
    if not isinstance(recipe, dict):
        raise InputError(f"recipe {path} is no mapping of names to values.")
    known = [f.name for f in (*fields(DistillArguments), *fields(GDKDConfig)) if f.init]
    if "loss_file" in recipe:
        raise InputError(f"recipe {path} sets loss_file, which runs code: use the flag --loss_file instead.")
    for key in recipe:
        if key not in known:
            raise InputError(f"recipe {path} has an unknown key {key!r}{closest(str(key), known)}")
    return recipe


def closest(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f": did you mean {close[0]}?" if close else "; --help all lists the flags."


def as_flags(recipe: Mapping[str, Any]) -> list[str]:
    """A recipe as flags, so that its values are read and checked as theirs are."""
    flags: list[str] = []
    for key, value in recipe.items():
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def run_settings(script: DistillArguments, args: GDKDConfig) -> dict[str, Any]:
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
    return shlex.join(["hf-gdkd", "distill", *kept])
