"""The paper's experiments: `--recipe cifar100/resnet32x4-resnet8x4 --loss gdkd`; `--list_recipes` names them all.

A recipe is the data set's training settings, the loss's options on that data set, and what a pair of teacher and
student has of its own. The numbers are those of the configurations that the paper's authors published
(github.com/ZaberKo/GDKD, `configs/`; for transformers github.com/ZaberKo/vit-gdkd, `config/`), read into the tables
below row by row. What they did not publish is left at this project's defaults, and the list says so.

Their distillation weight warms up by min(epoch / warmup, 1), in steps: the first epoch has 1 / warmup. Ours grows with
every optimizer step (`kd_warmup_epochs`) and reaches the same value at the end of each epoch; before that, it is lower
by up to 1 / warmup. Their warm-up of 1 epoch is a factor of 1 throughout: no warm-up here.
"""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from ..errors import InputError
from ..models.cifar import NAMES
from ..training.preset_table import listing as preset_listing
from .segmentation_recipes import segmentation_recipes

Settings = dict[str, Any]


class Recipe(NamedTuple):
    """One row of the paper's experiments."""

    settings: Settings
    """Models, data and training, by the names of the flags."""
    losses: dict[str, Settings]
    """The published options by loss, or by loss and flag where those have options of their own."""
    unpublished: str = ""
    """What else of the recipe is not published."""


# Training

CNN: Settings = {  # SOLVER, of every CNN; their training loop clips no gradients
    "optim": "sgd",
    "optim_args": "momentum=0.9",
    "decay_all_weights": True,
    "max_grad_norm": 0.0,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "lr_decay_rate": 0.1,
}
CIFAR100: Settings = CNN | {
    "dataset": "uoft-cs/cifar100",
    "student_init": "random",
    "crop_padding": 4,
    "num_train_epochs": 240,
    "per_device_train_batch_size": 64,
    "learning_rate": 0.05,
    "lr_decay_epochs": [150, 180, 210],
    "weight_decay": 5e-4,
}
AUGMENTED: Settings = {"auto_augment": "cifar10", "cutout": 16}  # of the "augmented teacher" rows
SLOWER = {name: {"learning_rate": 0.01} for name in ("MobileNetV2", "ShuffleV1", "ShuffleV2")}  # as students
IMAGENET: Settings = CNN | {
    "dataset": "ILSVRC/imagenet-1k",
    "student_init": "random",
    "num_train_epochs": 100,
    "per_device_train_batch_size": 512,
    "learning_rate": 0.2,
    "lr_decay_epochs": [30, 60, 90],
    "weight_decay": 1e-4,
}
TRANSFER: Settings = CNN | {"num_train_epochs": 100, "per_device_train_batch_size": 64, "weight_decay": 1e-3}
TRANSFERS: dict[str, Settings] = {
    "cub200": TRANSFER
    | {"dataset": "bentrevett/caltech-ucsd-birds-200-2011", "learning_rate": 0.0025, "lr_decay_epochs": [40, 80]},
    "tiny-imagenet": TRANSFER
    | {"dataset": "zh-plus/tiny-imagenet", "learning_rate": 0.001, "lr_decay_epochs": [30, 60]},
}

# Losses: the columns of the table of defaults

CIFAR100_LOSSES: dict[str, Settings] = {  # w1, w2 and beta of dkd: by pair
    "kd": {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0},
    "kd --standardize global": {"ce_weight": 0.1, "kd_weight": 9.0, "temperature": 2.0},
    "dkd": {"ce_weight": 1.0, "alpha": 1.0, "temperature": 4.0, "kd_warmup_epochs": 20},
    "gdkd": {"ce_weight": 1.0, "w0": 1.0, "k": 5, "temperature": 4.0, "kd_warmup_epochs": 20},
    "gdkd3": {"ce_weight": 1.0, "w0": 1.0, "k": 4, "temperature": 4.0, "kd_warmup_epochs": 20},
    "dist": {"ce_weight": 1.0, "beta": 2.0, "gamma": 2.0, "temperature": 4.0},
    "mlkd": {
        "ce_weight": 0.1,
        "kd_weight": 0.9,
        "temperatures": [2.0, 3.0, 4.0, 5.0, 6.0],
        "mask_samples": True,
        "mask_classes": True,
    },
}
TRANSFORMER_LOSSES: dict[str, Settings] = {
    "kd": {"ce_weight": 0.5, "kd_weight": 0.5, "temperature": 1.0},
    "dkd": {"ce_weight": 1.0, "alpha": 0.5, "beta": 1.0, "temperature": 1.0},
    "gdkd": {"ce_weight": 1.0, "w0": 0.5, "w1": 1.0, "w2": 1.0, "k": 5, "temperature": 1.0},
    "gdkd3": {"ce_weight": 1.0, "w0": 1.0, "w1": 1.0, "w2": 1.0, "k": 5, "temperature": 1.0},
    "dist": {"ce_weight": 1.0, "beta": 2.0, "gamma": 2.0, "temperature": 1.0},
}
# CNNs on ImageNet, Tiny-ImageNet and CUB-200-2011: the same but for dkd, and without gdkd3.
IMAGENET_LOSSES = {name: options for name, options in TRANSFORMER_LOSSES.items() if name != "gdkd3"}
IMAGENET_LOSSES["dkd"] = IMAGENET_LOSSES["dkd"] | {"alpha": 1.0, "beta": 0.5}

# Pairs

CIFAR100_PAIRS = {  # (teacher, student): w1 and w2 of gdkd and gdkd3, beta of dkd
    ("resnet56", "resnet20"): (1.0, 1.0, 2.0),
    ("resnet110", "resnet32"): (1.0, 1.0, 2.0),
    ("resnet32x4", "resnet8x4"): (2.0, 8.0, 8.0),
    ("wrn_40_2", "wrn_16_2"): (2.0, 6.0, 6.0),
    ("wrn_40_2", "wrn_40_1"): (2.0, 6.0, 6.0),
    ("vgg13", "vgg8"): (1.0, 6.0, 6.0),
    ("resnet32x4", "ShuffleV1"): (1.0, 8.0, 8.0),
    ("resnet32x4", "ShuffleV2"): (1.0, 8.0, 8.0),
    ("wrn_40_2", "ShuffleV1"): (2.0, 6.0, 8.0),
    ("ResNet50", "MobileNetV2"): (1.0, 8.0, 8.0),
    ("vgg13", "MobileNetV2"): (1.0, 6.0, 6.0),
}
IMAGENET_PAIRS: dict[tuple[str, str], dict[str, Settings]] = {  # (teacher, student): options of its own
    ("resnet34", "resnet18"): {},
    ("resnet50", "mobilenetv1"): {"gdkd": {"w1": 2.0, "w2": 2.0}},
}
TIMM_IDS = {  # with weights on ImageNet: torchvision's; it has no MobileNetV1
    "resnet18": "timm/resnet18.tv_in1k",
    "resnet34": "timm/resnet34.tv_in1k",
    "resnet50": "timm/resnet50.tv_in1k",
    "mobilenetv1": "timm/mobilenetv1_100.ra4_e3600_r224_in1k",
}


def _with_own(losses: dict[str, Settings], own: dict[str, Settings]) -> dict[str, Settings]:
    return {name: options | own.get(name, {}) for name, options in losses.items()}


def _recipes() -> dict[str, Recipe]:
    recipes, cross_entropy = {}, {"ce": {}}
    for (teacher, student), (w1, w2, beta) in CIFAR100_PAIRS.items():
        own = {"gdkd": {"w1": w1, "w2": w2}, "gdkd3": {"w1": w1, "w2": w2}, "dkd": {"beta": beta}}
        models = {"teacher": f"runs/cifar100/{teacher}", "student": f"cifar/{student}"}
        recipes[f"cifar100/{teacher}-{student}"] = Recipe(
            CIFAR100 | SLOWER.get(student, {}) | models, _with_own(CIFAR100_LOSSES, own)
        )
    for data, augmentation in {"cifar100": {}, "cifar100-augmented": AUGMENTED}.items():
        for name in NAMES:
            settings = CIFAR100 | augmentation | SLOWER.get(name, {}) | {"student": f"cifar/{name}"}
            recipes[f"{data}/{name}"] = Recipe(settings, cross_entropy)
    for (teacher, student), own in IMAGENET_PAIRS.items():
        models, losses = {"teacher": TIMM_IDS[teacher], "student": TIMM_IDS[student]}, _with_own(IMAGENET_LOSSES, own)
        recipes[f"imagenet/{teacher}-{student}"] = Recipe(IMAGENET | models, losses)
        for data, settings in TRANSFERS.items():
            recipes[f"{data}/{teacher}-{student}"] = Recipe(
                settings | models | {"teacher": f"runs/{data}/{teacher}"}, losses
            )
    for data, settings in TRANSFERS.items():
        for name, timm_id in TIMM_IDS.items():
            recipes[f"{data}/{name}"] = Recipe(settings | {"student": timm_id}, cross_entropy)
    for student in ("deit-tiny", "swin-tiny"):
        recipes[f"imagenet/any-{student}"] = Recipe(
            {"dataset": IMAGENET["dataset"], "student": student},
            TRANSFORMER_LOSSES,
            "the teacher (use --teacher) and the training",
        )
    recipes |= {name: Recipe(*row) for name, row in segmentation_recipes().items()}
    return recipes


RECIPES = _recipes()
"""Name (data set / teacher - student, or data set / model trained without a teacher) -> Recipe."""


def recipe_settings(name: str, loss: str, standardize: str | None = None) -> Settings:
    """The settings of one run, by the names of the flags; the batch is shared by the processes.

    Args:
        name: one of RECIPES, case ignored.
        loss: name of the loss; what has no published options there keeps its own defaults.
        standardize: as in the loss's options; for kd, "global" has published options of its own.

    Raises:
        InputError: an unknown name, a pair with loss ce, or a batch that the processes cannot share evenly.
    """
    known = {key.lower(): key for key in RECIPES}
    if name.lower() not in known:
        close = get_close_matches(name.lower(), known, n=3)
        hint = f"did you mean {', '.join(known[c] for c in close)}?" if close else "--list_recipes names them all."
        raise InputError(f"there is no recipe {name!r}: {hint}")
    name = known[name.lower()]
    found = RECIPES[name]
    if "ce" in found.losses:
        loss = "ce"
    elif loss == "ce":
        raise InputError(f"recipe {name} distils: choose another loss, or the recipe of a model alone.")
    options = found.losses.get(f"{loss} --standardize {standardize}", found.losses.get(loss, {}))
    settings = found.settings | options | {"loss": loss}
    batch, processes = settings.get("per_device_train_batch_size"), int(os.environ.get("WORLD_SIZE", "1"))
    if batch is not None:
        if batch % processes:
            raise InputError(f"recipe {name} has batches of {batch}, which {processes} processes cannot share evenly.")
        settings["per_device_train_batch_size"] = batch // processes
    folder = f"runs/{name}" if loss == "ce" else f"runs/{name}-{loss}"
    standardized = standardize not in (None, "none")
    return settings | {"output_dir": f"{folder}-standardized-{standardize}" if standardized else folder}


def check_teacher_is_trained(teachers: Sequence[str] | None) -> None:
    """InputError when the folder of a teacher that a recipe trains is not there; it names that recipe."""
    for teacher in teachers or ():
        if teacher.removeprefix("runs/") in RECIPES and not os.path.isdir(teacher):
            raise InputError(
                f"teacher {teacher} is not there: train it with --recipe {teacher.removeprefix('runs/')}, or use "
                "--teacher."
            )


def listing() -> str:
    """The names, under the losses that have published options there and what is left at the defaults; presets last."""
    groups: dict[str, list[str]] = {}
    for name, found in RECIPES.items():
        missing = [] if "ce" in found.losses else [loss for loss in CIFAR100_LOSSES if loss not in found.losses]
        missing += [found.unpublished] if found.unpublished else []
        left = f" (not published, at this project's defaults: {', '.join(missing)})" if missing else ""
        groups.setdefault(f"--loss {', '.join(found.losses)}{left}", []).append(name)
    recipes = ["\n  ".join([losses, *names]) for losses, names in groups.items()]
    return "\n\n".join([*recipes, preset_listing()])
