"""The options that GDKDConfig adds to TrainingArguments: the loss, its weight and schedule, the teacher.

Only the standard library is imported, because `--help` is made from this module and must be quick.
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
    "alpha_temperature",
    "beta",
    "gamma",
    "kl",
    "strategy",
    "partition",
    "standardize",
    "multiplier",
    "mask_samples",
    "mask_classes",
    "student_layers",
    "teacher_layers",
    "distance_weight",
    "angle_weight",
    "embedding_size",
    "mask_ratio",
    "gradient_scaling",
    "normalize",
    "stages",
)


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class LossOptions:
    """Loss"""

    loss: str = _option(
        "gdkd",
        "gdkd, kd, dist, fitnet, ...; several: gdkd+fitnet; auto: recommended; ce: no teacher. See `hf-gdkd losses`.",
    )
    loss_options: list[str] | None = _option(
        None, "Further options, of one of several losses (gdkd.k=3 fitnet.weight=30) or of a loss of your own."
    )
    temperature: float | None = _option(None, "Temperature T > 0 of the softmaxes (crd: of the similarities).")
    temperatures: list[float] | None = _option(None, "Temperatures that mlkd sums over.")
    k: int | str | None = _option(None, "Classes in the top group, below C (gdkd, gdkd3), or auto.")
    threshold: float | None = _option(
        None,
        "Choose k for each sample (gdkd): a class is in the top group if its probability is at least this many times "
        "the mean of the smaller ones; above 1, the authors use 2; k is then the upper limit.",
    )
    class_k: list[int] | None = _option(None, "A k for the samples of each class, by label, instead of k (gdkd).")
    w0: float | None = _option(None, "Weight of the high-level term, between the groups (gdkd, gdkd3).")
    w1: float | None = _option(None, "Weight of the low-level term inside the top group (gdkd, gdkd3).")
    w2: float | None = _option(None, "Weight of the low-level term inside the other group (gdkd, gdkd3).")
    coupled: bool | None = _option(None, "Multiply the low-level terms by the teacher's mass of their group (gdkd).")
    alpha: float | None = _option(None, "Weight of the target-class term (dkd, rld).")
    alpha_temperature: float | None = _option(None, "Temperature of the target-class term (rld); unset: the other's.")
    beta: float | None = _option(None, "Weight of the non-target (dkd, rld) or inter-class (dist) term.")
    gamma: float | None = _option(
        None, "Weight of the intra-class (dist, gdkd; for gdkd unset: 0) or the non-target (nkd) term."
    )
    kl: str | None = _option(None, "Direction of the divergence: forward, reverse or both (gdkd).")
    strategy: str | None = _option(None, "Group the teacher's best or worst k classes (gdkd).")
    partition: str | None = _option(None, "The class that dkd separates: the label (target) or the teacher's top1.")
    standardize: str | None = _option(None, "Standardize the logits: none, global; gdkd: also both, other.")
    multiplier: float | None = _option(
        None, "Standard deviation to which logits are brought (skd); unset: that of the teacher's, by sample."
    )
    mask_samples: bool | None = _option(None, "Use only the samples of which the teacher is least sure (mlkd).")
    mask_classes: bool | None = _option(None, "Use only the classes of which the teacher is least sure (mlkd).")
    student_layers: list[str] | None = _option(
        None,
        "Modules of the student whose outputs are compared, from shallow to deep, instead of its stages (fitnet, at, "
        "reviewkd, cwd_features, vitkd).",
    )
    teacher_layers: list[str] | None = _option(None, "Modules of the teacher, likewise.")
    distance_weight: float | None = _option(None, "Weight of the distances between samples (rkd).")
    angle_weight: float | None = _option(None, "Weight of the angles between samples (rkd).")
    embedding_size: int | None = _option(None, "Size of the space in which student and teacher are compared (crd).")
    mask_ratio: float | None = _option(None, "Share of the last tokens that is hidden, to be guessed (vitkd).")
    gradient_scaling: float | None = _option(
        None, "Scale the gradient up where the teacher is surer than on average; 2 is published."
    )
    normalize: bool | None = _option(None, "Compare the last stage with the teacher's, standardized (fitnet).")
    stages: str | None = _option(None, "Stages to compare: middle, last or all (fitnet); unset: one.")
    ce_weight: float | None = _option(None, "Weight of the cross-entropy; unset: the loss's own.")
    kd_weight: float | str | None = _option(None, "Weight of the distillation, or auto; unset: the loss's own.")
    class_weights: list[float] | None = _option(
        None, "Weight of each class in the cross-entropy, which stays a mean over samples; unset: 1."
    )
    binary_cross_entropy: bool = _option(
        False, "A cross-entropy of each class by itself, yes or no, and their mean, in place of the softmax's."
    )
    ignore_incorrect: bool = _option(
        False,
        "Distil only where the teacher is right: elsewhere the distillation loss is 0, and the cross-entropy stays.",
    )
    resize_logits: bool = _option(
        False,
        "Distil at the resolution of the label maps, the logits resized, instead of that of the student's logits.",
    )
    kd_warmup_epochs: float = _option(0.0, "Epochs over which the weight of the distillation grows from 0.")
    kd_skip_epochs: float = _option(0.0, "Epochs without distillation before that growth begins.")


@dataclass
class TrainingOptions:
    """Training"""

    timm_optimizer: str | None = _option(
        None, "An optimizer of timm, such as lamb, in place of --optim; --optim_args are passed to it."
    )
    lr_decay_epochs: list[float] | None = _option(
        None, "Epochs at whose end the learning rate is multiplied by lr_decay_rate; with lr_scheduler_type constant."
    )
    lr_decay_rate: float = _option(0.1, "Factor of the learning rate at lr_decay_epochs.")
    record_gradients: bool = _option(
        False, "Record how strongly each term of gdkd or gdkd3 pulls at the classes outside the top group."
    )
    decay_all_weights: bool = _option(
        False, "Apply weight_decay to normalisation and biases too; off: as Trainer does."
    )
    teacher_dtype: str | None = _option(
        None,
        f"Precision of the teacher: {', '.join(TEACHER_DTYPES)}; unset: that of --bf16 or --fp16, or as it was loaded.",
    )
    shard_teacher: bool = _option(
        False, "Split the weights of a teacher that is too large over the processes, as ZeRO-3 does."
    )
    ema_decay: float | None = _option(None, "Average the weights, with this decay (0.9999 for long runs).")
    dataloader_num_workers: int | None = _option(
        None,
        "DataLoader workers of each process; unset: its share of the CPU cores, at most 8, and 0 for small data sets.",
    )
    dataloader_timeout: int = _option(600, "Seconds to wait for a batch of a DataLoader worker; 0: for ever.")
    hub_strategy: str = _option(
        "end", f"When to push: {', '.join(HUB_STRATEGIES)} (also the model of each checkpoint)."
    )
    logging_nan_inf_filter: bool = _option(
        False, "Leave NaN and infinite losses out of the log. Off, because it synchronises the device at each step."
    )
    remove_unused_columns: bool = _option(
        False, "Off, because images become tensors batch by batch, and the teacher may have a view of its own."
    )


@dataclass
class DistillationOptions(TrainingOptions, LossOptions):
    """Every option that GDKDConfig adds to TrainingArguments, or gives another default."""
