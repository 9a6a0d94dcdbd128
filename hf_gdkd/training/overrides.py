"""The private methods of transformers' Trainer that are overridden in this folder, and the check that they exist.

A release of transformers that renames one would stop calling ours, without an error. A test holds that the list is
complete.
"""

from __future__ import annotations

import transformers
from transformers import Trainer

from ..errors import InputError

OVERRIDDEN = (
    "_clip_grad_norm",
    "_get_dataloader",
    "_get_grad_norm",
    "_get_train_sampler",
    "_hp_search_setup",
    "_load_best_model",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_maybe_log_save_evaluate",
    "_prepare_for_training",
    "_prepare_inputs",
    "_push_from_checkpoint",
    "_save",
    "_save_checkpoint",
    "_save_optimizer_and_scheduler",
    "_save_rng_state",
    "_set_signature_columns_if_needed",
)


def check_overridden() -> None:
    """Refuse a release of transformers whose Trainer lacks a method that is overridden here.

    Raises:
        InputError: the methods that are missing, by name.
    """
    if missing := [name for name in OVERRIDDEN if not hasattr(Trainer, name)]:
        raise InputError(
            f"transformers {transformers.__version__} has no Trainer.{', Trainer.'.join(missing)}, which hf_gdkd "
            'builds on: install a release that it supports (pip install "transformers>=5.23,<6").'
        )
