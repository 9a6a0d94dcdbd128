"""GDKDConfig: TrainingArguments plus the distillation loss, its options, its weight and its schedule."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import get_int_from_env
from transformers import TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config

from ..errors import InputError
from ..losses import DistillationLoss, build_loss

# (ce_weight, kd_weight) of the paper's recipes for transformers on ImageNet, where they are not (1, 1).
LOSS_WEIGHTS = {
    "ce": (1.0, 0.0),
    "kd": (0.5, 0.5),
    "mlkd": (0.1, 0.9),
    "fitnet": (1.0, 100.0),
    "at": (1.0, 1000.0),
    "crd": (1.0, 0.8),
}

HUB_STRATEGIES = ("end", "every_save")
TEACHER_DTYPES = ("float32", "bfloat16", "float16")

LOSS_OPTIONS = (
    "temperature",
    "temperatures",
    "k",
    "threshold",
    "class_k",
    "w0",
    "w1",
    "w2",
    "coupled",
    "alpha",
    "beta",
    "gamma",
    "kl",
    "strategy",
    "partition",
    "standardize",
    "mask_samples",
    "mask_classes",
    "student_layers",
    "teacher_layers",
    "distance_weight",
    "angle_weight",
    "embedding_size",
)


def _option(help: str) -> None:
    """A field that is None until the user sets it: the loss then takes its own default."""
    return field(default=None, metadata={"help": help})


@dataclass(repr=False)  # TrainingArguments' own hides the token
class GDKDConfig(TrainingArguments):
    """What `GDKDTrainer` needs: every argument of `transformers.TrainingArguments`, and those below.

    The options of a loss keep the paper's letters; None means the loss's own default, and an option that the
    loss does not take is an error.

    Raises:
        InputError: a value that is out of range, or an option that the loss does not take.
    """

    loss: str = field(
        default="gdkd",
        metadata={
            "help": "gdkd, gdkd3, dkd, kd, dist, mlkd; on hidden features fitnet, at, rkd, crd, reviewkd; a registered "
            "name; ce trains without a teacher."
        },
    )
    temperature: float | None = _option("Temperature T > 0 of both softmaxes (crd: of the similarities).")
    temperatures: list[float] | None = _option("Temperatures that mlkd sums over.")
    k: int | None = _option("Classes in the teacher's top group: 1 to C-1 (gdkd), 2 to C-1 (gdkd3).")
    threshold: float | None = _option(
        "A k for each sample (gdkd): how many times the mean probability of the smaller classes a class must have to "
        "be in the top group; above 1, the authors' is 2; k is then the most there can be."
    )
    class_k: list[int] | None = _option("A k for the samples of each class, by label, instead of k (gdkd).")
    w0: float | None = _option("Weight of the high-level term, between the groups (gdkd, gdkd3).")
    w1: float | None = _option("Weight of the low-level term inside the top group (gdkd, gdkd3).")
    w2: float | None = _option("Weight of the low-level term inside the other group (gdkd, gdkd3).")
    coupled: bool | None = _option("Multiply the low-level terms by the teacher's mass of their group (gdkd).")
    alpha: float | None = _option("Weight of the target-class term (dkd).")
    beta: float | None = _option("Weight of the non-target term (dkd), of the inter-class term (dist).")
    gamma: float | None = _option("Weight of the intra-class term (dist, gdkd; for gdkd unset: 0).")
    kl: str | None = _option("Direction of the divergence: forward, reverse or both (gdkd).")
    strategy: str | None = _option("Group the teacher's best or worst k classes (gdkd).")
    partition: str | None = _option("The class that dkd sets apart: the label (target) or the teacher's top1.")
    standardize: str | None = _option("Standardize the logits: none, global; gdkd also takes both and other.")
    mask_samples: bool | None = _option("Only samples of which the teacher is least sure (mlkd).")
    mask_classes: bool | None = _option("Only classes of which the teacher is least sure (mlkd).")
    student_layers: list[str] | None = _option(
        "Modules of the student whose outputs are compared, from shallow to deep, instead of its stages (fitnet, at, "
        "reviewkd)."
    )
    teacher_layers: list[str] | None = _option("Modules of the teacher, likewise (fitnet, at, reviewkd).")
    distance_weight: float | None = _option("Weight of the distances between samples (rkd).")
    angle_weight: float | None = _option("Weight of the angles between samples (rkd).")
    embedding_size: int | None = _option("Size of the space in which student and teacher are compared (crd).")
    ce_weight: float | None = _option("Weight of the cross-entropy; unset: the recipe of the loss.")
    kd_weight: float | None = _option("Weight of the distillation loss; unset: the recipe of the loss.")
    class_weights: list[float] | None = _option(
        "Weight of each class in the cross-entropy, which stays a mean over samples; unset: 1 for all."
    )
    kd_warmup_epochs: float = field(
        default=0.0, metadata={"help": "Epochs over which the distillation weight grows from 0; 0: at once."}
    )
    kd_skip_epochs: float = field(
        default=0.0, metadata={"help": "Epochs without distillation before that growth begins."}
    )
    lr_decay_epochs: list[float] | None = _option(
        "Epochs at whose end the learning rate is multiplied by lr_decay_rate; with lr_scheduler_type constant."
    )
    lr_decay_rate: float = field(default=0.1, metadata={"help": "Factor of the learning rate at lr_decay_epochs."})
    decay_all_weights: bool = field(
        default=False, metadata={"help": "Apply weight_decay to normalisation and biases too; off: as Trainer does."}
    )
    teacher_dtype: str | None = field(
        default=None,
        metadata={"help": f"Teacher's precision: {', '.join(TEACHER_DTYPES)}; unset: as it was loaded."},
    )
    shard_teacher: bool = field(
        default=False,
        metadata={"help": "Split the teacher's weights over the processes, as ZeRO-3 does: where it is too large."},
    )
    ema_decay: float | None = _option(
        "Evaluate and save an exponential moving average of the student's weights: the share, above 0 and below 1, "
        "that the average keeps at a step (0.9999 for long runs; less in the first steps). Unset: no average."
    )
    dataloader_timeout: int = field(
        default=600, metadata={"help": "Seconds to wait for a batch of a DataLoader worker; 0: for ever."}
    )
    hub_strategy: str = field(
        default="end",
        metadata={
            "help": f"When to push: {', '.join(HUB_STRATEGIES)} (also the model of each checkpoint, in training)."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Leave NaN and infinite losses out of the log. Off: it synchronises the device each step."},
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Off: the columns of images are turned into tensors batch by batch, and the teacher "
                          "may have a view of its own."},
    )  # fmt: skip

    def __post_init__(self) -> None:
        default_ce, default_kd = LOSS_WEIGHTS.get(self.loss, (1.0, 1.0))
        self.ce_weight = default_ce if self.ce_weight is None else self.ce_weight
        self.kd_weight = default_kd if self.kd_weight is None else self.kd_weight
        numbers = {
            name: getattr(self, name)
            for name in ("ce_weight", "kd_weight", "kd_warmup_epochs", "kd_skip_epochs", "dataloader_timeout")
        }
        numbers |= {f"class_weights[{i}]": value for i, value in enumerate(self.class_weights or [])}
        for name, value in numbers.items():
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value}: give a finite number that is 0 or more.")
        if self.teacher_dtype not in (None, *TEACHER_DTYPES):
            raise InputError(f"teacher_dtype is {self.teacher_dtype!r}: choose one of {', '.join(TEACHER_DTYPES)}.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InputError(f"ema_decay is {self.ema_decay}: give a number above 0 and below 1, such as 0.999.")
        for epoch in self.lr_decay_epochs or ():
            if not (math.isfinite(epoch) and epoch > 0):
                raise InputError(f"lr_decay_epochs has {epoch}: give finite numbers above 0.")
        if not (math.isfinite(self.lr_decay_rate) and self.lr_decay_rate > 0):
            raise InputError(f"lr_decay_rate is {self.lr_decay_rate}: give a finite number above 0.")
        if self.hub_strategy not in HUB_STRATEGIES:
            raise InputError(
                f"hub_strategy is {str(self.hub_strategy)!r}: choose one of {', '.join(HUB_STRATEGIES)}; whole "
                "checkpoints are not pushed, as they hold pickles."
            )
        self.build_loss()
        super().__post_init__()
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
                f"the launcher started {launched} processes, but each would train alone: give --use_cpu on a machine "
                "without GPUs, or start one process."
            )
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
            if self.accelerator_config.split_batches and getattr(self, name) % self.world_size:
                raise InputError(
                    f"{name} {getattr(self, name)} cannot be split among {self.world_size} processes: give a multiple "
                    f"of {self.world_size}, or leave split_batches out."
                )

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
        return {name: getattr(self, name) for name in LOSS_OPTIONS if getattr(self, name) is not None}

    def build_loss(self) -> DistillationLoss | None:
        """The distillation loss; None for "ce".

        Raises:
            InputError: unknown loss, an option that the loss does not take, or a value out of range.
        """
        options = self.set_loss_options()
        if self.loss != "ce":
            return build_loss(self.loss, **options)
        if options:
            raise InputError(
                f"loss ce takes no option, given {', '.join(options)}: leave them out or choose another loss."
            )
        return None

    def ramp(self, epoch: float) -> float:
        """Factor of `kd_weight` at this (fractional) epoch, from 0 to 1."""
        if epoch < self.kd_skip_epochs:
            return 0.0
        if self.kd_warmup_epochs == 0:
            return 1.0
        return min((epoch - self.kd_skip_epochs) / self.kd_warmup_epochs, 1.0)
