"""The table of `--preset`: whole recipes that others published for ImageNet-1k, number by number, with their sources.

Only the standard library is imported, because `hf-gdkd recipes` lists it and must be quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Rate(NamedTuple):
    """A learning rate, and the number of images an optimizer step that it was published for."""

    value: float
    batch: int


class Preset(NamedTuple):
    """A recipe: settings by flag, each group with its source."""

    summary: str
    epochs: float
    """On ImageNet-1k."""
    source: str
    settings: Mapping[str, Any]
    """For every student. `learning_rate` is a Rate, `lr_decay_epochs` are shares of the training, `drop_path_rate` is
    of the student's configuration, and `averaged` is the share of the training over which a moving average of the
    weights reaches back."""
    cnn: Mapping[str, Any] = {}
    transformer: Mapping[str, Any] = {}
    """What is added for each kind of student."""
    transformer_source: str | None = None
    """Where the settings for a transformer come from, if not from `source`."""


USI = "arXiv 2204.03475; train.py of github.com/Alibaba-MIIL/Solving_ImageNet"
VANILLA = "arXiv 2305.15781; strategy A2 in the readme of github.com/Hao840/vanillaKD"
FUNMATCH = "arXiv 2106.05237; bit_i1k.py in configs/proj/distill of github.com/google-research/big_vision"
ML_DR = "arXiv 2303.08983; configs/imagenet/kd.yaml of github.com/apple/ml-dr"
CLASSIC = "arXiv 2512.04625; the ImageNet configs of github.com/ZaberKo/GDKD, as mdistiller's"
DEIT = "DeiT's plain training: arXiv 2012.12877, table 9"

PLAIN_KD = {"loss": "kd", "temperature": 1.0}
SGD = {"optim": "sgd", "optim_args": "momentum=0.9"}
ADAMW = {"optim": "adamw_torch_fused", "learning_rate": Rate(1e-3, 1024), "weight_decay": 0.05}

PRESETS: dict[str, Preset] = {
    "usi": Preset(
        "one recipe for every architecture: AdamW, strong augmentation, 5 times KL",
        300,
        USI,
        PLAIN_KD
        | {"ce_weight": 1.0, "kd_weight": 5.0, "label_smoothing_factor": 0.0}
        | {"optim": "adamw_torch_fused", "learning_rate": Rate(2e-3, 1024), "weight_decay": 0.02, "max_grad_norm": 0.0}
        | {"lr_scheduler_type": "cosine", "warmup_steps": 5 / 300}
        | {"auto_augment": "randaugment", "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "repeated_augmentation": 3}
        | {"averaged": 25_000 / 375_300},  # a decay of 0.99996, of 300 epochs of 1,251 steps
    ),
    "vanilla": Preset(
        "plain KL and a binary cross-entropy, LAMB, strong augmentation",
        300,
        VANILLA,
        PLAIN_KD
        | {"ce_weight": 1.0, "kd_weight": 1.0, "binary_cross_entropy": True, "label_smoothing_factor": 0.0}
        | {"timm_optimizer": "lamb", "learning_rate": Rate(5e-3, 2048), "weight_decay": 0.02, "max_grad_norm": 0.0}
        | {"lr_scheduler_type": "cosine", "warmup_steps": 5 / 300, "drop_path_rate": 0.05}
        | {"auto_augment": "randaugment", "mixup_alpha": 0.1, "cutmix_alpha": 1.0, "repeated_augmentation": 3},
    ),
    "funmatch": Preset(
        "KL alone, no labels, every image mixed, very long",
        1200,
        FUNMATCH,
        PLAIN_KD
        | {"ce_weight": 0.0, "kd_weight": 1.0, "mixup_alpha": 1.0, "max_grad_norm": 1.0}
        | {"lr_scheduler_type": "cosine", "warmup_steps": 0.0136},  # 5,000 steps of 367,800
        # Its weight decay of 0.0003 is not multiplied by the learning rate, as AdamW's is: 0.0003 / 0.03.
        cnn={"optim": "adamw_torch_fused", "learning_rate": Rate(0.03, 4096), "weight_decay": 0.01},
        transformer=ADAMW,
        transformer_source=DEIT,
    ),
    "ml-dr": Preset(
        "KL alone, no labels, for a teacher cache of views that are replayed",
        150,
        ML_DR,
        PLAIN_KD
        | {"ce_weight": 0.0, "kd_weight": 1.0, "max_grad_norm": 0.0}
        | {"lr_scheduler_type": "cosine", "warmup_steps": 5 / 150}
        | {"auto_augment": "randaugment", "random_erasing": 0.25, "mixup_alpha": 1.0, "cutmix_alpha": 1.0},
        cnn=SGD | {"learning_rate": Rate(0.4, 1024), "weight_decay": 1e-5},
        transformer=ADAMW | {"drop_path_rate": 0.1},
        transformer_source=DEIT,
    ),
    "fast": Preset(
        "the classic short recipe: crop and flip, a third of the length",
        100,
        CLASSIC,
        {"loss": "gdkd", "ce_weight": 1.0, "w0": 0.5, "w1": 1.0, "w2": 1.0, "temperature": 1.0, "max_grad_norm": 0.0},
        cnn=SGD
        | {"learning_rate": Rate(0.2, 512), "weight_decay": 1e-4, "decay_all_weights": True, "warmup_steps": 0}
        | {"lr_scheduler_type": "constant", "lr_decay_epochs": [0.3, 0.6, 0.9], "lr_decay_rate": 0.1},
        transformer=ADAMW | {"lr_scheduler_type": "cosine", "warmup_steps": 5 / 100},
        transformer_source=DEIT,
    ),
}

# Of every preset: the published students start from random weights; and an epoch of a small data set is short.
ALWAYS: dict[str, tuple[Any, str]] = {
    "student_init": ("random", "as published: these settings are not for a student that is trained already"),
    **dict.fromkeys(("eval_strategy", "save_strategy"), ("steps", "this project: 100 times in all")),
    **dict.fromkeys(("eval_steps", "save_steps"), (0.01, "this project: 100 times in all")),
}
# A setting of the user's takes the others of its group with it.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("loss", "ce_weight", "kd_weight", "temperature", "w0", "w1", "w2"),
    ("lr_scheduler_type", "lr_decay_epochs", "lr_decay_rate"),
)
OPTIMIZERS = ("optim", "timm_optimizer", "optim_args")


def listing() -> str:
    """What `hf-gdkd recipes` says of the presets."""
    lines = [f"  {name:10}{each.epochs:g} epochs on ImageNet-1k: {each.summary}" for name, each in PRESETS.items()]
    return "\n".join(["--preset: recipes of others, for any teacher, student and data set", *lines])
