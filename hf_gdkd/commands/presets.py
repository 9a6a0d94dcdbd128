"""`--preset` of a run: what it sets before the data set is known and after it, and what is printed."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Collection, Iterable
from typing import Any

from ..errors import InputError
from ..training.config import GDKDConfig
from ..training.loss_options import as_dict, as_words
from ..training.preset_table import PRESETS
from ..training.presets import BY_LENGTH, PresetSettings, preset_settings
from .arguments.distill_flags import DistillArguments

OF_LABELS = ("ce_weight", "binary_cross_entropy", "label_smoothing_factor")


def given_names(flags: Namespace, names: Iterable[str]) -> frozenset[str]:
    """The names of the settings that the preset of these flags shall not have, as the user has set them.

    A loss that is the preset's own leaves the preset its weights, and without labels there are no settings of theirs.
    """
    same = flags.preset in PRESETS and flags.loss == PRESETS[flags.preset].settings["loss"]
    of_labels = OF_LABELS if flags.label_free else ()
    return frozenset(name for name in (*names, *of_labels) if not (name == "loss" and same))


def preset_flags(flags: Namespace, given: Collection[str]) -> dict[str, Any]:
    """The settings of a preset by flag, without those that the number of images decides.

    Args:
        flags: what the user set, and the defaults of the rest.
        given: as `given_names` returns it.

    Raises:
        InputError: no such preset, or a run of another task.
    """
    if flags.task != "image-classification":
        raise InputError(f"presets are for --task image-classification, and this run is {flags.task}: leave it out.")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch = flags.per_device_train_batch_size * flags.gradient_accumulation_steps * processes
    found = dict(_resolve(flags, given, images=None, batch_size=batch).settings)
    if "student_config" in found:
        found["student_config"] = as_words(found["student_config"] | _own_config(flags))
    return found


def settle_preset(script: DistillArguments, args: GDKDConfig, images: int) -> None:
    """Set what the number of images decides, and print all that the preset stands for; 0 images are a stream."""
    if script.preset is None:
        return
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    epochs = args.num_train_epochs if "num_train_epochs" in script.given else None
    length = {"images": images, "num_train_epochs": epochs, "max_steps": args.max_steps}
    found = _resolve(script, script.given, batch_size=batch, **length)
    for name in BY_LENGTH:
        if name in found.settings:
            setattr(args, name, found.settings[name])
    if args.process_index == 0:
        print(_described(script.preset, found))


def _resolve(flags: Namespace | DistillArguments, given: Collection[str], **options: Any) -> PresetSettings:
    source = {"revision": flags.student_revision, "trust_remote_code": flags.trust_remote_code}
    given = set(given) - {"student_config"}  # of which the preset sets one value
    given |= {"student_config"} if "drop_path_rate" in _own_config(flags) else set()
    return preset_settings(flags.preset, flags.student, given=given, **options, **source)


def _own_config(flags: Namespace | DistillArguments) -> dict[str, Any]:
    return as_dict(flags.student_config, "student_config", "num_hidden_layers=6")


def _described(name: str, found: PresetSettings) -> str:
    """A line for each setting, with its source."""
    lines = [f"preset {name} stands for"]
    for key, value in found.settings.items():
        words = as_words(value) if isinstance(value, dict) else value if isinstance(value, list) else [value]
        said = " ".join(f"{word:g}" if isinstance(word, float) else str(word) for word in words)
        lines.append(f"--{key} {said} ({found.sources[key]})")
    lines += [f"left out, because of what you set: {', '.join(found.overridden)}"] if found.overridden else []
    return "\n  ".join(lines)
