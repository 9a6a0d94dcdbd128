"""`--preset`: a published recipe of others, as settings for a student, a data set and a batch."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..models.configuration import read_config, with_labels, with_options
from ..models.kinds import CLASSIFIER
from ..models.load_errors import explained
from ..models.names import resolve_name
from .auto_loss import family_of
from .auto_table import CNN
from .config import GDKDConfig
from .preset_table import ALWAYS, GROUPS, OPTIMIZERS, PRESETS, Preset, Rate

IMAGENET = 1_281_167  # training images of ImageNet-1k
DATA = ("auto_augment", "random_erasing", "mixup_alpha", "cutmix_alpha", "repeated_augmentation")
BY_LENGTH = ("num_train_epochs", "lr_decay_epochs", "ema_decay")  # what the number of images decides


@dataclass(frozen=True)
class PresetSettings:
    """What a preset stands for.

    Attributes:
        settings: every setting by its flag; `student_config` is a mapping.
        sources: where each comes from.
        overridden: what the preset would have set, too.
    """

    settings: dict[str, Any]
    sources: dict[str, str]
    overridden: tuple[str, ...] = ()

    @property
    def training(self) -> dict[str, Any]:
        """Arguments of a GDKDConfig."""
        known = {field.name for field in fields(GDKDConfig)}
        return {name: value for name, value in self.settings.items() if name in known}

    @property
    def data(self) -> dict[str, Any]:
        """The augmentation: such of `DATA` as it sets."""
        return {name: self.settings[name] for name in DATA if name in self.settings}

    @property
    def student(self) -> dict[str, Any]:
        """Arguments of `hf_gdkd.models.load_model`."""
        return {"init": self.settings["student_init"], "config": self.settings.get("student_config")}


def preset_settings(
    name: str,
    student: nn.Module | str | None = None,
    *,
    images: int | None,
    batch_size: int,
    num_train_epochs: float | None = None,
    max_steps: int = -1,
    given: Collection[str] = (),
    **source: Any,
) -> PresetSettings:
    """The settings that a preset stands for.

    The epochs are those published times (1,281,167 / images) ** 0.25: a data set of an eighth of ImageNet's images has
    1.7 times as many. That root makes 225 of the 100 epochs of the paper's recipe for ImageNet on CIFAR-100, for which
    its authors have 240. A learning rate for a batch of B images is multiplied by batch_size / B with SGD, and by the
    root of that with AdamW and LAMB, as timm's train.py does.

    Args:
        name: usi, vanilla, funmatch, ml-dr or fast.
        student: a model, or its name; some presets differ for CNNs and transformers. None: as for a CNN.
        images: in the training set; None: what depends on it is left out.
        batch_size: images an optimizer step, over all processes.
        num_train_epochs, max_steps: the length of the training, where it is not the preset's.
        given: names of settings that the preset shall not have, because the user sets them.
        **source: `revision` and `trust_remote_code` of a student by name.

    Raises:
        InputError: there is no such preset, or the student cannot be read.

    Examples:
        >>> from torch import nn
        >>> from hf_gdkd.training import preset_settings
        >>> found = preset_settings("vanilla", nn.Conv2d(3, 8, 3), images=50_000, batch_size=256)
        >>> found.training["timm_optimizer"], found.training["num_train_epochs"]
        ('lamb', 675.0)
        >>> found.data["mixup_alpha"], found.sources["mixup_alpha"][:16]
        (0.1, 'arXiv 2305.15781')
    """
    if name not in PRESETS:
        raise InputError(f"preset is {name!r}: choose one of {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    family, drops_paths = _describe(student, **source)
    own = preset.cnn if family == CNN else preset.transformer
    own_source = preset.source if family == CNN else preset.transformer_source or preset.source
    found = {key: (value, preset.source) for key, value in preset.settings.items()}
    found |= {key: (value, own_source) for key, value in own.items()} | ALWAYS
    found["learning_rate"] = _scaled(*found["learning_rate"], batch_size, linear=found.get("optim", ("",))[0] == "sgd")
    if (drop := found.pop("drop_path_rate", None)) is not None and drops_paths:
        found["student_config"] = {"drop_path_rate": drop[0]}, drop[1]
    _set_length(found, preset, images, batch_size, num_train_epochs, max_steps)
    for group in GROUPS:
        given = {*given, *group} if group[0] in given else given
    given = {*given, *OPTIMIZERS} if {"optim", "timm_optimizer"} & set(given) else given
    kept = {key: pair for key, pair in found.items() if key not in given}
    settings, sources = ({key: pair[i] for key, pair in kept.items()} for i in (0, 1))
    return PresetSettings(settings, sources, tuple(key for key in found if key not in kept))


def _describe(student: nn.Module | str | None, **source: Any) -> tuple[str, bool]:
    """CNN or TRANSFORMER, and whether a student by name takes a `drop_path_rate` in its configuration."""
    if student is None:
        return CNN, False
    if isinstance(student, nn.Module):
        return family_of(student), False
    path, trust = resolve_name(student), source.get("trust_remote_code", False)
    for options in ({"drop_path_rate": 0.1}, {}):
        config = with_labels(read_config(path, CLASSIFIER, **source, installed=True), ["0", "1"])
        try:
            with torch.device("meta"), explained(f"model {path} cannot be built", path, source.get("revision")):
                changed = with_options(config, options, path)
                model = CLASSIFIER.auto.from_config(changed, trust_remote_code=trust)
        except InputError:
            if not options:
                raise
        else:
            return family_of(model), bool(options)
    raise AssertionError("the second attempt returns or raises")


def _scaled(rate: Rate, source: str, batch_size: int, *, linear: bool) -> tuple[float, str]:
    """The learning rate for a batch, and why."""
    factor = batch_size / rate.batch if linear else math.sqrt(batch_size / rate.batch)
    rule = f"{batch_size} / {rate.batch}" if linear else f"the root of {batch_size} / {rate.batch}"
    return float(f"{rate.value * factor:.4g}"), f"{source}: {rate.value:g} for batches of {rate.batch}, times {rule}"


def _set_length(
    found: dict[str, tuple[Any, str]],
    preset: Preset,
    images: int | None,
    batch_size: int,
    epochs: float | None,
    max_steps: int,
) -> None:
    """Replace what depends on the length of the training by numbers; left out where that is not known."""
    shares, averaged = found.pop("lr_decay_epochs", None), found.pop("averaged", None)
    if images is None:
        return
    per_epoch = math.ceil(images / batch_size) or max_steps  # a stream is one epoch
    if max_steps > 0:
        epochs = max_steps / per_epoch
    elif epochs is None:
        epochs = max(1.0, float(round(preset.epochs * (IMAGENET / images) ** 0.25)))
        rule = f"{preset.epochs:g} on ImageNet-1k, times ({IMAGENET:,} / {images:,}) ** 0.25"
        found["num_train_epochs"] = epochs, f"{preset.source}: {rule}"
    if shares is not None:
        at = ", ".join(f"{share:g}" for share in shares[0])
        found["lr_decay_epochs"] = [round(share * epochs, 2) for share in shares[0]], f"{shares[1]}: at {at} of them"
    if averaged is not None:
        decay = max(0.9, 1 - 1 / (averaged[0] * epochs * per_epoch))
        why = f"{averaged[1]}: an average over {averaged[0]:.1%} of the training, as there"
        found["ema_decay"] = float(f"{decay:.6g}"), why
