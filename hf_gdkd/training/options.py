"""The options that GDKDConfig adds to TrainingArguments: the loss, its weight and schedule, the teacher.

Importing this module is quick: `--help` is made of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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


def _option(help: str) -> Any:
    """A field that is None until the user sets it: the loss then takes its own default."""
    return field(default=None, metadata={"help": help})


@dataclass
class DistillationOptions:
    """Every option that GDKDConfig adds to TrainingArguments, or gives another default."""

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
