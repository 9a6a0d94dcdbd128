"""`--loss auto`: the loss that is recommended for a student, its classes and the length of its training."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import has_length

from ..errors import InputError
from ..losses import FeatureLoss
from ..losses.combined import is_auto
from ..models.kinds import SEGMENTER, kind_of
from .auto_k import find_k
from .auto_table import CNN, ROWS, TRANSFORMER, Row
from .cached_teacher import check_caches
from .config import GDKDConfig
from .feature_distillation import FeatureDistillation
from .loss_options import as_dict, as_words, automatic_k
from .options import LOSS_OPTIONS
from .stopped_step import random_state, set_random_state
from .teacher import num_labels_of

AUTO = "auto"
SETTINGS = ("loss", "ce_weight", "kd_weight", *LOSS_OPTIONS)  # what it sets, and `loss_options`


class Run(NamedTuple):
    """What a row is chosen by."""

    student: str
    classes: float
    epochs: float  # infinite for a stream
    labels: bool
    maps: bool

    @classmethod
    def of(cls, trainer: Trainer) -> Run:
        args, rows = trainer.args, trainer.train_dataset
        epochs = args.num_train_epochs
        if args.max_steps > 0:
            batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
            epochs = args.max_steps / math.ceil(len(rows) / batch) if has_length(rows) else math.inf
        classes = num_labels_of(trainer.model) or trainer.teacher.num_labels or math.inf
        maps = kind_of(trainer.model) is SEGMENTER
        return cls(family_of(trainer.model), classes, epochs, args.ce_weight != 0, maps)

    def suits(self, row: Row) -> bool:
        return row.suits(*self)

    def __str__(self) -> str:
        said = [self.student]
        said += [] if self.classes == math.inf else [f"{self.classes} classes"]
        said += ["a stream" if self.epochs == math.inf else f"{self.epochs:g} epoch{'' if self.epochs == 1 else 's'}"]
        said += [] if self.labels else ["no labels"]
        return ", ".join([*said, "label maps"] if self.maps else said)


def family_of(model: nn.Module) -> str:
    """CNN, or TRANSFORMER for a model with attention between tokens.

    Examples:
        >>> family_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 10)))
        'a CNN'
    """
    names = {type(module).__name__ for module in model.modules()}
    return TRANSFORMER if any("Attention" in name and "Pool" not in name for name in names) else CNN


def resolve(trainer: Trainer) -> None:
    """Put explicit settings in the place of `auto` in a trainer's arguments, and print what they are.

    Raises:
        InputError: no teacher, or as `choose` and `find_k`.
    """
    args, notes = trainer.args, []
    if args.loss == AUTO:
        if trainer.teacher is None:
            raise InputError("loss auto needs a teacher: pass teacher_model, or train without one with loss ce.")
        choose(trainer)
        notes = ["\n  ".join(args.auto_notes)]
    if trainer.teacher is not None and automatic_k(args.set_loss_options()):
        notes += find_k(trainer)
    if trainer.is_world_process_zero() and notes:
        print("\n".join(notes))


def choose(trainer: Trainer) -> None:
    """Put the settings that `auto` stands for into a trainer's arguments, around those that the user set.

    Raises:
        InputError: a setting of the user's that does not suit, or no row that this run can have.
    """
    args, run, refused = trainer.args, Run.of(trainer), []
    before = dict(vars(args))
    for row in filter(run.suits, ROWS):
        reasons = _set(args, row)
        try:
            args.complete_loss()
        except InputError as error:
            raise InputError(f"loss auto stands for {args.loss} here: {error}") from error
        try:
            _check_possible(trainer)
        except InputError as error:
            refused.append(f"not {args.loss}: {error}")
            vars(args).clear()
            vars(args).update(before)
            continue
        args.auto_notes = [
            f"loss auto ({run}) stands for {_as_flags(args)}",
            *refused,
            *reasons,
            f"source: {row.source}.",
        ]
        return
    raise InputError(f"loss auto finds none for this run ({run}): {'; '.join(refused)} Choose a loss by name.")


def settings_of_loss(args: GDKDConfig) -> dict[str, Any]:
    """The loss and the settings of it that are set, by flag."""
    names = (*SETTINGS, "loss_options")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _as_flags(args: GDKDConfig) -> str:
    words = []
    for name, value in settings_of_loss(args).items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return " ".join(words)


def _set(args: GDKDConfig, row: Row) -> list[str]:
    """Set what the user has not set; returns the reasons, one a line."""
    own = {name: getattr(args, name) for name in SETTINGS[1:] if getattr(args, name) is not None}
    own |= as_dict(args.loss_options)
    added, reasons = {}, []
    for key, (value, reason) in row.settings.items():
        option = key.rpartition(".")[2]
        weighs_itself = option == "weight" and is_auto(own.get("kd_weight", 0))
        if own.get(key) != value and (key in own or option in own or weighs_itself):
            continue
        reasons.append(f"{as_words({key: value})[0]}: {reason}")
        if key in SETTINGS:
            setattr(args, key, value)
        else:
            added[key] = value
    args.loss_options = as_words(added | as_dict(args.loss_options)) or None
    others = {key: value for key, value in own.items() if key not in row.settings or value != row.settings[key][0]}
    return [*reasons, f"as you set it: {' '.join(as_words(others))}."] if others else reasons


def _check_possible(trainer: Trainer) -> None:
    """Refuse a loss that needs what this run cannot have: features, or the logits of all classes."""
    loss, teacher = trainer.args.build_loss(), trainer.teacher
    check_caches(teacher, loss, trainer.args.loss)
    state = random_state(trainer.args.device)
    for each in loss.members.values() if trainer.train_dataset is not None else ():
        if isinstance(each, FeatureLoss):
            FeatureDistillation.of_trainer(each, trainer, teacher)
    set_random_state(trainer.args.device, state)  # so that the run is that of the explicit settings
