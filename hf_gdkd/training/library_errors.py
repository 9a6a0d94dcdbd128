"""What Trainer, Accelerate and torch refuse before the first step: one sentence that names the arguments.

The libraries check their arguments where they use them, with errors of every type and often without the argument's
name. Here an error becomes an InputError that names the arguments that were set and may be the cause; the original
error is its cause in Python. Where no such argument was set, the error stays as it is.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import MISSING, fields
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import TrainOutput, has_length

from ..errors import InputError, PushError, TrainingError, first_sentence

# The functions of the libraries that use some arguments only, and the beginnings of the names of those.
_USERS = {
    "create_optimizer": ("optim",),
    "create_scheduler": ("lr_scheduler",),
    "get_reporting_integration_callbacks": ("report_to",),
    "add_callback": ("report_to",),
}
# The beginnings of the names of all arguments that the libraries may refuse.
_SUSPECTS = """
optim lr_scheduler report_to gradient_checkpointing activation_checkpointing torch_compile use_liger_kernel
liger_kernel_config neftune accelerator_config parallelism_config dataloader_ fsdp deepspeed debug tf32 bf16 fp16
auto_find_batch_size train_sampling_strategy length_column_name label_names ddp_ eval_ include_ skip_memory_metrics
full_determinism log_level metric_for_best_model load_best_model hub_ push_to_hub trackio_ save_ enable_jit logging_
""".split()
# Not suspected unless the error names them, or their function failed.
_WITH_USERS = tuple(start for starts in _USERS.values() for start in starts)
_INNOCENT = ("_strategy", "_steps")
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]
_FORGIVEN = {"dataloader_pin_memory", "save_total_limit", "logging_steps", "logging_nan_inf_filter"}


@contextmanager
def naming_arguments(args: TrainingArguments | None) -> Iterator[None]:
    """Turn an error of a library into an InputError that names the arguments which may have caused it."""
    try:
        yield
    except (InputError, TrainingError, PushError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if _of_a_library(error) and (suspects := _suspects(args, error)):
            said = ", ".join(f"{name} {_shown(getattr(args, name))}" for name in suspects)
            raise InputError(f"{said} cannot be used here: {first_sentence(error)}") from error
        raise


def _of_a_library(error: Exception) -> bool:
    """Whether a library raised it: neither the user's code, nor ours, nor the disk."""
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
        return False
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        installed = "-packages" in frame.filename
        if installed or not frame.filename.startswith((_STANDARD_LIBRARY, "<frozen")):
            return installed and "hf_gdkd" not in frame.filename
    return False


def _suspects(args: TrainingArguments | None, error: Exception) -> list[str]:
    """The arguments that were set: those that the error names, else those of the function that failed, else all."""
    if args is None:
        return []
    given = [f.name for f in fields(args) if f.init and f.name.startswith(tuple(_SUSPECTS)) and _is_set(args, f)]
    frames = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    users = tuple(start for function, starts in _USERS.items() if function in frames for start in starts)
    named = [name for name in given if name in str(error)]
    used = [name for name in given if users and name.startswith(users)]
    return (
        named or used or [name for name in given if not name.startswith(_WITH_USERS) and not name.endswith(_INNOCENT)]
    )


def _is_set(args: TrainingArguments, field: Any) -> bool:
    value, default = getattr(args, field.name, None), field.default
    if field.name in _FORGIVEN or value is None or value is False or value in ([], {}, "", "none"):
        return False
    if isinstance(value, AcceleratorConfig):
        return value != AcceleratorConfig()
    return default is MISSING or value != default


def _shown(value: Any) -> str:
    value = getattr(value, "value", value)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


class StrictTrainer(Trainer):
    """A Trainer that says what is wrong with its arguments, before the first step, in one sentence."""

    def __init__(self, model: Any = None, args: TrainingArguments | None = None, *more: Any, **kwargs: Any) -> None:
        with naming_arguments(args):
            super().__init__(model, args, *more, **kwargs)
        self._first_step = _FirstStep()
        self.add_callback(self._first_step)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As Trainer's.

        Raises:
            InputError: a library refuses an argument, before the first step is done.
        """
        self._first_step.done = False
        try:
            return super().train(*args, **kwargs)
        except Exception as error:
            if self._first_step.done:
                raise
            with naming_arguments(self.args):
                raise error

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        """As Trainer's, but no image is left out of an evaluation."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def get_train_dataloader(self) -> DataLoader:
        """As Trainer's.

        Raises:
            InputError: it has no batch, or BatchNorm cannot normalise its last one.
        """
        loader = super().get_train_dataloader()
        if not has_length(self.train_dataset):
            return loader
        rows, batch = len(self.train_dataset), self._train_batch_size * self.args.world_size
        if self.args.dataloader_drop_last and rows < batch:
            raise InputError(
                f"there are {rows} training images, and dataloader_drop_last leaves a batch of fewer than {batch} out: "
                "use a smaller per_device_train_batch_size, or leave dataloader_drop_last out."
            )
        if self.args.world_size == 1 and (batch == 1 or (rows % batch == 1 and not self.args.dataloader_drop_last)):
            self._check_single_image()
        return loader

    def _check_single_image(self) -> None:
        """One image through a copy of the model, as training would do it."""
        if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.model.modules()):
            return
        batch = self._prepare_inputs(self.data_collator([next(iter(self.train_dataset))]))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                deepcopy(self.model).train()(batch["pixel_values"])
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            which = "every batch" if self._train_batch_size == 1 else "the last batch of an epoch"
            raise InputError(
                f"{which} has 1 of the {len(self.train_dataset)} training images, which BatchNorm cannot normalise: "
                "use --dataloader_drop_last, or another per_device_train_batch_size."
            ) from error


class _FirstStep(TrainerCallback):
    """Whether the first optimizer step is done."""

    done = False

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.done = True
