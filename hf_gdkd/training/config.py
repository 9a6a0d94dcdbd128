"""GDKDConfig: TrainingArguments plus the distillation loss, its options, its weight and its schedule."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from inspect import cleandoc
from typing import Any

from accelerate.utils import get_int_from_env
from transformers import TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config

from ..errors import InputError
from ..losses import LOSS_WEIGHTS, CWDLoss, DistillationLoss, FeatureLoss, build_loss
from ..losses.combined import checked_weight, is_auto, name_and_options
from ..losses.gradients import check_has_gradients
from ..losses.registry import keywords
from .allowed_values import check_ranges
from .balance import found_weights
from .library_errors import naming_arguments
from .loss_options import as_dict, as_words, automatic_k
from .optimizers import timm_optimizer
from .options import HUB_STRATEGIES, LOSS_OPTIONS, TEACHER_DTYPES, DistillationOptions


@dataclass(repr=False)  # TrainingArguments' own hides the token
class GDKDConfig(DistillationOptions, TrainingArguments):
    """Configure a `GDKDTrainer`: every argument of `transformers.TrainingArguments`, and those below.

    The options of a loss keep the paper's letters; None means the loss's own default, and an option that the
    loss does not take is an error. `loss` may name several, joined by + or as a list of mappings, and `loss_options`
    may be a mapping.

    Examples:
        >>> args = GDKDConfig(output_dir="runs/student", loss="gdkd", k=3, temperature=2.0, use_cpu=True)
        >>> args.set_loss_options()
        {'temperature': 2.0, 'k': 3}
        >>> GDKDConfig(loss="rkd", k=3)
        Traceback (most recent call last):
        hf_gdkd.errors.InputError: the loss 'rkd' takes no option 'k': it takes distance_weight, angle_weight.

    Raises:
        InputError: a value that is out of range, or an option that the loss does not take.

    Args:
    """

    def __post_init__(self) -> None:
        self.loss, given = name_and_options(self.loss)
        self.loss_options = as_words(given | as_dict(self.loss_options)) or None
        if self.kd_weight is not None:
            self.kd_weight = checked_weight("kd_weight", self.kd_weight)
        if isinstance(self.k, str) and self.k != "auto":
            if not self.k.isdigit():
                raise InputError(f"k is {self.k}: use a whole number of at least 1, or auto.")
            self.k = int(self.k)
        check_ranges(self)
        if self.timm_optimizer is not None:
            timm_optimizer(self.timm_optimizer)
        if self.binary_cross_entropy and self.class_weights:
            raise InputError("binary_cross_entropy has no class_weights: leave one of them out.")
        if self.teacher_dtype not in (None, *TEACHER_DTYPES):
            raise InputError(f"teacher_dtype is {self.teacher_dtype!r}: choose one of {', '.join(TEACHER_DTYPES)}.")
        if self.hub_strategy not in HUB_STRATEGIES:
            raise InputError(
                f"hub_strategy is {str(self.hub_strategy)!r}: choose one of {', '.join(HUB_STRATEGIES)}; "
                "checkpoints are not pushed, because they hold pickles."
            )
        self.auto_notes: list[str] = []  # what a trainer found in the place of "auto"
        if self.loss != "auto":
            self.complete_loss()
        workers_unset = self.dataloader_num_workers is None  # TrainingArguments compares it with numbers
        self.dataloader_num_workers = 1 if workers_unset else self.dataloader_num_workers
        with naming_arguments(self):
            super().__post_init__()
        self.dataloader_num_workers = None if workers_unset else self.dataloader_num_workers
        self._load_models_whole()
        self.dataloader_pin_memory &= self.device.type != "cpu"
        if self.lr_decay_epochs and self.lr_scheduler_type != "constant":
            raise InputError(
                "lr_decay_epochs lowers a constant learning rate, and lr_scheduler_type is "
                f"{self.lr_scheduler_type.value}: add --lr_scheduler_type constant."
            )
        launched = get_int_from_env(("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"), 1)
        if launched > 1 and self.world_size == 1:
            raise InputError(
                f"the launcher started {launched} processes, but each would train alone: use --use_cpu on a machine "
                "without GPUs, or start one process."
            )
        if self.n_gpu > 1:
            raise InputError(
                f"one process would train on {self.n_gpu} GPUs with DataParallel, which splits batches: start one "
                "process per GPU with `hf-gdkd distill` or `accelerate launch`, or set CUDA_VISIBLE_DEVICES=0."
            )
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
            if self.accelerator_config.split_batches and getattr(self, name) % self.world_size:
                raise InputError(
                    f"{name} {getattr(self, name)} cannot be split among {self.world_size} processes: use a multiple "
                    f"of {self.world_size}, or leave split_batches out."
                )

    def own_copy(self) -> GDKDConfig:
        """A copy whose `auto` a trainer may resolve; without any, this itself."""
        if self.loss != "auto" and not automatic_k(self.set_loss_options()):
            return self
        copied = object.__new__(type(self))
        copied.__dict__ |= self.__dict__  # copy.copy would leave the Hub token out
        return copied

    def complete_loss(self) -> None:
        """Set the weights that are unset to those of the loss, and check its options.

        Raises:
            InputError: a value that is out of range, or an option that the loss does not take.
        """
        default_ce, default_kd = LOSS_WEIGHTS.get(self.loss, (1.0, 1.0))
        self.ce_weight = default_ce if self.ce_weight is None else self.ce_weight
        self.kd_weight = default_kd if self.kd_weight is None else self.kd_weight
        self._check_elements(loss := self.build_loss())
        if loss is not None:
            found_weights(self.loss, loss, self.kd_weight)
        if self.record_gradients:
            check_has_gradients(loss, self.loss)

    def _check_elements(self, loss: DistillationLoss | None) -> None:
        """Refuse what is about single pixels, or images, where the loss does not compare logits one by one."""
        on_logits = [each for each in (loss.members.values() if loss else ()) if not isinstance(each, FeatureLoss)]
        by_element = [each for each in on_logits if not isinstance(each, CWDLoss)]
        for name, applies in (("resize_logits", on_logits), ("ignore_incorrect", by_element)):
            if getattr(self, name) and not applies:
                raise InputError(f"{name} has no effect with loss {self.loss}: leave it out, or choose another loss.")

    def _load_models_whole(self) -> None:
        """On every process, so that a head can be fitted and a teacher checked: ZeRO-3 and FSDP may ask for less."""
        if self.fsdp_plugin_args is not None:
            self.fsdp_plugin_args["cpu_ram_efficient_loading"] = False
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        unset_hf_deepspeed_config()

    def __getstate__(self) -> dict[str, Any]:
        """All but the Hub token: Trainer pickles its arguments."""
        return self.__dict__ | {"hub_token": None}

    def set_loss_options(self) -> dict[str, object]:
        """The loss options that the user set, by name."""
        flags = {name: getattr(self, name) for name in LOSS_OPTIONS if getattr(self, name) is not None}
        return flags | as_dict(self.loss_options)

    def build_loss(self) -> DistillationLoss | None:
        """The distillation loss; None for "ce", and for "auto" until a trainer has found what it stands for.

        An automatic k that no trainer has found yet is 2, which suits every loss.

        Raises:
            InputError: unknown loss, an option that the loss does not take, or a value out of range.
        """
        options = self.set_loss_options()
        options |= dict.fromkeys(automatic_k(options), 2)
        if self.loss == "auto":
            return None
        if self.loss != "ce":
            if is_auto(self.kd_weight) and "+" in self.loss:
                options.setdefault("weight", self.kd_weight)  # of every part without a weight of its own
            elif is_auto(self.kd_weight) and "normalize" in keywords(self.loss):
                options.setdefault("normalize", True)
            loss = build_loss(self.loss, **options)
            for each in loss.members.values():
                each.dim = 1  # in logits (N, C) as in those of maps, (N, C, h, w)
            return loss
        if options:
            raise InputError(
                f"loss ce takes no option, given {', '.join(options)}: leave them out or choose another loss."
            )
        return None

    @property
    def kd_factor(self) -> float:
        """`kd_weight` where it is a number; 1 where the weight is automatic, or that of every part of the loss is."""
        return 1.0 if is_auto(self.kd_weight) else self.kd_weight

    def ramp(self, epoch: float) -> float:
        """Factor of `kd_weight` at this (fractional) epoch, from 0 to 1."""
        if epoch < self.kd_skip_epochs:
            return 0.0
        if self.kd_warmup_epochs == 0:
            return 1.0
        return min((epoch - self.kd_skip_epochs) / self.kd_warmup_epochs, 1.0)


# The help texts are the only copy: help(GDKDConfig) shows them too.
GDKDConfig.__doc__ = cleandoc(GDKDConfig.__doc__ or "") + "".join(
    f"\n    {f.name} ({f.type}, default {f.default}): {f.metadata['help']}" for f in fields(DistillationOptions)
)
