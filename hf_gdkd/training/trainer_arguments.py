"""What GDKDTrainer refuses of that which Trainer takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

from ..errors import InputError
from .config import GDKDConfig


def check_arguments(args: TrainingArguments, kwargs: Mapping[str, Any]) -> None:
    """Refuse what Trainer would take and GDKDTrainer has no place for.

    Raises:
        InputError: one of them.
    """
    if not isinstance(args, GDKDConfig):
        raise InputError(
            f"args is a {type(args).__name__}, which names no distillation loss: pass a GDKDConfig, which takes the "
            "same arguments and those of the loss."
        )
    if kwargs.get("compute_loss_func") is not None:
        raise InputError(
            "compute_loss_func would take the place of the distillation loss: register the loss under a name "
            "(hf_gdkd.losses.register_loss), or override compute_loss in a subclass of GDKDTrainer."
        )
    if args.label_names not in (None, ["labels"]):
        raise InputError(f"label_names is {args.label_names}: call the column labels and leave label_names out.")
