"""The experiments on Cityscapes, as rows of `recipes`: the paper's CNNs, and SegFormer's own training of its students.

The CNNs are those of github.com/ZaberKo/seg-gdkd (from DIST_KD's segmentation): its training settings and the defaults
of its losses. Its polynomial decay stops at 1e-4; ours ends there, a little higher on the way. It ships no script of
gdkd, so the weights of each pair are not known. SegFormer's are those of github.com/NVlabs/SegFormer,
local_configs/segformer/B0/segformer.b0.1024x1024.city.160k.py; its head learns ten times as fast, which has no flag
here, and no weight decay on biases and normalisation is Trainer's default.
"""

from __future__ import annotations

from typing import Any

Settings = dict[str, Any]

CITYSCAPES: Settings = {
    "task": "semantic-segmentation",
    "dataset": "Chris1/cityscapes",
    "lr_scheduler_type": "polynomial",
    "max_grad_norm": 0.0,
    "eval_strategy": "steps",
    "eval_steps": 4000,
    "save_strategy": "steps",
    "save_steps": 4000,
}
CNN: Settings = CITYSCAPES | {
    "max_steps": 40_000,
    "per_device_train_batch_size": 16,
    "crop_size": [512, 1024],
    "optim": "sgd",
    "optim_args": "momentum=0.9",
    "learning_rate": 0.02,
    "lr_scheduler_kwargs": {"power": 0.9, "lr_end": 1e-4},
    "warmup_steps": 0,
    "weight_decay": 5e-4,
    "decay_all_weights": True,
}
SEGFORMER: Settings = CITYSCAPES | {
    "max_steps": 160_000,
    "per_device_train_batch_size": 8,
    "crop_size": [1024, 1024],
    "learning_rate": 6e-5,
    "lr_scheduler_kwargs": {"power": 1.0, "lr_end": 0.0},
    "warmup_steps": 1500,
    "weight_decay": 0.01,
    "window": 1024,
}
LOSSES: dict[str, Settings] = {
    "kd": {"ce_weight": 1.0, "kd_weight": 1.0, "temperature": 1.0},
    "dkd": {"ce_weight": 1.0, "alpha": 1.0, "beta": 2.0, "temperature": 1.0},
    "gdkd": {"ce_weight": 1.0, "w0": 1.0, "w1": 1.0, "w2": 2.0, "k": 3, "temperature": 1.0},
    "dist": {"ce_weight": 1.0, "beta": 1.0, "gamma": 1.0, "temperature": 1.0},
}


def segmentation_recipes() -> dict[str, tuple[Settings, dict[str, Settings], str]]:
    """Name -> settings, the options of each loss, and what of the recipe is not published."""
    rows = {}
    teacher = "deeplabv3_resnet101"
    for student in ("deeplabv3_resnet18", "pspnet_resnet18"):
        models = {"teacher": f"runs/cityscapes/{teacher}", "student": f"segmentation/{student}"}
        rows[f"cityscapes/{teacher}-{student}"] = (CNN | models, LOSSES, "the weights of gdkd for each pair")
    for size in ("b4", "b5"):
        models = {"teacher": f"nvidia/segformer-{size}-finetuned-cityscapes-1024-1024", "student": "nvidia/mit-b0"}
        missing = "the losses for these models, which are those of the CNNs"
        rows[f"cityscapes/segformer-{size}-b0"] = (SEGFORMER | models, LOSSES, missing)
    for name in (teacher, "deeplabv3_resnet18", "pspnet_resnet18"):
        rows[f"cityscapes/{name}"] = (CNN | {"student": f"segmentation/{name}"}, {"ce": {}}, "")
    rows["cityscapes/segformer-b0"] = (SEGFORMER | {"student": "nvidia/mit-b0"}, {"ce": {}}, "")
    return rows
