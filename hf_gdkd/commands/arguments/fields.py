"""The flags of a run that are about its models and its data, and what a run sets of its training by default.

Importing this module is quick: `--help` is made of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# What the script sets that TrainingArguments would set otherwise.
TRAINING_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 64,
    "num_train_epochs": 10.0,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "weight_decay": 0.05,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 0.01,  # of all steps
}


def _field(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class DistillArguments:
    """The models and the data of one run; the loss and the training are GDKDConfig's."""

    student: str | None = _field(None, "Student: Hub id, short name, timm id or local folder.")
    teacher: list[str] | None = _field(None, "Teacher, likewise, or several; leave it out with --loss ce.")
    teacher_weights: list[float] | None = _field(None, "Weights of several teachers' probabilities; unset: the same.")
    dataset: str = _field("timm/mini-imagenet", "Data set: Hub id, local folder, or digits (embedded).")
    loss_file: str | None = _field(
        None, "Python file to run first: it registers a loss of your own, which --loss names."
    )
    student_init: str = _field("pretrained", "pretrained: from weights; random: the architecture only.")
    student_revision: str | None = _field(None, "Branch, tag or commit of the student.")
    teacher_revision: list[str] | None = _field(None, "Branch, tag or commit of each teacher.")
    dataset_config: str | None = _field(None, "Configuration of the data set.")
    dataset_revision: str | None = _field(None, "Branch, tag or commit of the data set.")
    train_split: str = _field("train", "Split to train on.")
    eval_split: str | None = _field(None, "Split to evaluate on; unset: validation, valid, val or test.")
    train_rows: int | None = _field(None, "Train on so many rows of that split, drawn by --seed; unset: on all.")
    validation_rows: int | None = _field(
        None, "Evaluate on so many rows held out of the train split, drawn by --seed, in the place of --eval_split."
    )
    image_column: str | None = _field(None, "Column of the images; unset: found by its type.")
    label_column: str | None = _field(None, "Column of the labels; unset: found by name and type.")
    streaming: bool = _field(False, "Read the training images as they come; needs max_steps, which are then one epoch.")
    on_bad_image: str = _field("error", "An image that cannot be read: error, or skip, which leaves it out.")
    crop_scale: float | None = _field(None, "Smallest share of an image's area in a random crop; 1: no crop.")
    crop_padding: int = _field(0, "Pixels of black around an image, to cut a crop of its own size from; 0: crop_scale.")
    flip: bool | None = _field(None, "Flip half of the training images; unset: yes, but not digits.")
    auto_augment: str | None = _field(None, "randaugment, or the AutoAugment policy of cifar10 or imagenet.")
    random_erasing: float = _field(0.0, "Probability that a rectangle of a training image is erased.")
    cutout: int = _field(0, "Side of a square, in pixels, that is erased from every training image.")
    mixup_alpha: float = _field(0.0, "Mix training images: alpha of mixup (0.2 is usual); 0: no.")
    cutmix_alpha: float = _field(0.0, "Paste rectangles of other images: alpha of CutMix (1 is usual); 0: no.")
    repeated_augmentation: int = _field(1, "How often an image stands in an epoch, augmented anew each time.")
    early_stopping_patience: int | None = _field(
        None, "Stop after so many evaluations without a better one, and keep the best (top-1 unless told otherwise)."
    )
    label_map: list[str] | None = _field(
        None, "File (yaml, json) that maps the data set's classes to the teacher's; for several teachers one each."
    )
    label_free: bool = _field(False, "Distil without labels: no cross-entropy, the teacher's classes.")
    allow_weak_teacher: bool = _field(False, "Distil a teacher whose accuracy is near chance all the same.")
    license: str | None = _field(None, "License for the card; unset: that of the student it started from.")
    trust_remote_code: bool = _field(False, "Run model code from the Hub.")
    overwrite: bool = _field(False, "Train anew in an output folder that holds a run.")

    def teachers(self) -> list[tuple[str, str | None]]:
        """Name and revision of every teacher."""
        names = self.teacher or []
        return list(zip(names, self.teacher_revision or [None] * len(names), strict=True))

    def data_options(self) -> dict[str, Any]:
        """What `load_data` needs beside the name and the seed."""
        names = ("train_split", "eval_split", "train_rows", "validation_rows")
        names += ("image_column", "label_column", "on_bad_image", "streaming")
        options = {name: getattr(self, name) for name in names}
        options |= {"config": self.dataset_config, "revision": self.dataset_revision}
        return options | {"require_labels": not self.label_free, "ignore_labels": self.label_free}
