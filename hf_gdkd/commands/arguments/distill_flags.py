"""The flags of a run that are about its models and its data, and what a run sets of its training by default.

Only the standard library is imported, because `--help` is made from this module and must be quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

# Where a run's defaults differ from those of TrainingArguments.
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


# By task: where its defaults differ again, and the flags of its own, which the other task refuses.
TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "image-classification": {},
    "semantic-segmentation": {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,  # whole images
        "learning_rate": 6e-5,
        "weight_decay": 0.01,
        "batch_eval_metrics": True,  # so that no prediction is kept
    },
}
TASK_FLAGS: dict[str, tuple[str, ...]] = {
    "image-classification": (
        *("label_free", "streaming", "shuffle_buffer"),
        *("crop_scale", "crop_padding", "auto_augment", "random_erasing", "cutout", "exact_decoding"),
        *("mixup_alpha", "cutmix_alpha", "record_gradients", "binary_cross_entropy"),
    ),
    "semantic-segmentation": (
        *("crop_size", "scale_range", "reduce_labels", "id2label", "palette", "window", "resize_logits"),
    ),
}


@dataclass
class ModelArguments:
    """Models"""

    task: str = _field("image-classification", "image-classification (default) or semantic-segmentation.")
    teacher: list[str] | None = _field(None, "Hub id, short name, timm id or local folder; several: averaged.")
    student: str | None = _field(None, "Hub id, short name, timm id or local folder.")
    student_init: str = _field("pretrained", "pretrained (default), random, or teacher: start from its weights.")
    student_config: list[str] | None = _field(
        None, "Values to change in the student's configuration, such as num_hidden_layers=6; of a timm model depth=6."
    )
    teacher_weights: list[float] | None = _field(None, "Weight of each teacher's probabilities; unset: equal.")
    teacher_revision: list[str] | None = _field(None, "Branch, tag or commit of each teacher.")
    student_revision: str | None = _field(None, "Branch, tag or commit of the student.")
    label_map: list[str] | None = _field(None, "YAML or JSON file from the data set's classes to the teacher's.")
    label_free: bool = _field(False, "Distil without labels: no cross-entropy, the teacher's classes.")
    allow_weak_teacher: bool = _field(False, "Accept a teacher whose accuracy is near chance level.")
    teacher_cache: list[str] | None = _field(None, "Folder of the teacher's logits: read where known, else recorded.")
    cache_views: int | None = _field(
        None, "Views of each image, shown in turn; unset: a new one in each epoch, with a cache at most 50."
    )
    cache_dtype: str = _field("float16", "float16 (default), float32, int8 or top-M, such as top-10 (kd only).")
    trust_remote_code: bool = _field(False, "Run model code from the Hub.")


@dataclass
class DataArguments:
    """Data"""

    dataset: str = _field("timm/mini-imagenet", "Hub id, folder, digits or digit-scenes (embedded).")
    dataset_config: str | None = _field(None, "Configuration of the data set.")
    dataset_revision: str | None = _field(None, "Branch, tag or commit of the data set.")
    train_split: str = _field("train", "Split to train on.")
    eval_split: str | None = _field(None, "Split to evaluate on; unset: validation, valid, val or test.")
    train_rows: int | None = _field(None, "Train on a random subset of this many rows, drawn by --seed; unset: on all.")
    validation_rows: int | None = _field(None, "Evaluate on this many rows of the training split, always the same.")
    image_column: str | None = _field(None, "Column of the images; unset: found by its type.")
    label_column: str | None = _field(None, "Column of the labels; unset: found by name and type.")
    reduce_labels: bool | None = _field(None, "Masks whose 0 means no class; unset: found out.")
    id2label: str | None = _field(None, "JSON file {id: class} of the masks; unset: that in the data set.")
    palette: str | None = _field(None, "JSON file {class: [red, green, blue]} of masks in colour; unset: likewise.")
    window: int | None = _field(None, "Evaluate in sliding windows with this side; unset: whole images.")
    streaming: bool = _field(False, "Download images while training; needs --max_steps.")
    shuffle_buffer: int | None = _field(None, "Images that a stream holds to shuffle them; unset: 10,000.")
    on_bad_image: str = _field("error", "An unreadable image: error (default), or skip, to leave it out.")


@dataclass
class AugmentationArguments:
    """Augmentation"""

    crop_scale: float | None = _field(None, "Smallest share of the image's area in a random crop; 1: no crop.")
    crop_size: list[int] | None = _field(None, "Height and width of a crop of image and mask; unset: the model's.")
    scale_range: list[float] | None = _field(
        None, "Smallest and largest factor of the size of image and mask before the crop; unset: 0.5 2."
    )
    crop_padding: int = _field(0, "Pad the image by this many black pixels, then crop its original size.")
    flip: bool | None = _field(None, "Flip half of the training images; unset: yes, except for digits.")
    auto_augment: str | None = _field(None, "randaugment, or the AutoAugment policy of cifar10 or imagenet.")
    random_erasing: float = _field(0.0, "Probability that a rectangle of a training image is erased.")
    cutout: int = _field(0, "Side, in pixels, of a square erased from every training image.")
    exact_decoding: bool = _field(
        False, "Decode large JPEGs in full; off: at reduced size where a crop keeps 512 pixels (inputs over 256: 1024)."
    )
    mixup_alpha: float = _field(0.0, "Alpha of mixup, which blends images (0.2 is usual); 0: off.")
    cutmix_alpha: float = _field(0.0, "Alpha of CutMix, which pastes rectangles (1 is usual); 0: off.")
    repeated_augmentation: int = _field(1, "How often an epoch shows each image, augmented anew each time.")


@dataclass
class RunArguments:
    """Run"""

    preset: str | None = _field(None, "A whole recipe: usi, vanilla, funmatch, ml-dr or fast.")
    loss_file: str | None = _field(
        None, "Python file to run first: it registers a loss of your own, which --loss names."
    )
    early_stopping_patience: int | None = _field(None, "Stop after N evaluations without a better one; keep the best.")
    license: str | None = _field(None, "License for the card; unset: that of the student's source.")
    overwrite: bool = _field(False, "Replace the run that the output folder holds.")
    profile: bool = _field(False, "Print where the time goes until the end of the first step.")


@dataclass
class DistillArguments(RunArguments, AugmentationArguments, DataArguments, ModelArguments):
    """The models and the data of one run; the loss and the training are GDKDConfig's."""

    given: ClassVar[frozenset[str]] = frozenset()  # beside a preset, the names of what the user has set; no flag

    def teachers(self) -> list[tuple[str, str | None]]:
        """Name and revision of every teacher; a local one beside one of the Hub has the revision "none"."""
        names = self.teacher or []
        revisions = self.teacher_revision or ["none"] * len(names)
        return [(name, None if each == "none" else each) for name, each in zip(names, revisions, strict=True)]

    def data_options(self) -> dict[str, Any]:
        """What `load_data` needs beside the name and the seed."""
        names = ("train_split", "eval_split", "train_rows", "validation_rows")
        names += ("image_column", "label_column", "on_bad_image")
        names += {"semantic-segmentation": ("reduce_labels", "id2label", "palette")}.get(self.task, ("streaming",))
        options = {name: getattr(self, name) for name in names}
        options |= {"config": self.dataset_config, "revision": self.dataset_revision}
        if self.task == "image-classification":
            options |= {"require_labels": not self.label_free, "ignore_labels": self.label_free}
        return options


# The arguments of TrainingArguments that a run needs most, for `--help`.
TRAINING_HELP: dict[str, tuple[str, str]] = {
    "output_dir": ("FOLDER", "Where the student goes (default: runs/STUDENT-LOSS)."),
    "num_train_epochs": ("X", "Epochs."),
    "max_steps": ("N", "Optimizer steps, in place of epochs."),
    "per_device_train_batch_size": ("N", "Images per batch on each GPU."),
    "gradient_accumulation_steps": ("N", "Batches per optimizer step (default: 1)."),
    "learning_rate": ("X", "Highest learning rate; the default suits a pretrained student."),
    "bf16": ("", "Compute in bfloat16 (or --fp16)."),
    "torch_compile": ("", "Compile student, teacher and loss."),
    "seed": ("N", "Seed of weights, order and augmentation (default: 42)."),
    "use_cpu": ("", "Train on the CPU."),
    "report_to": ("NAME ...", "tensorboard, trackio, wandb, ... or none."),
    "resume_from_checkpoint": ("PATH", "last: go on from the newest complete checkpoint, or begin."),
}
HUB_HELP: dict[str, tuple[str, str]] = {
    "push_to_hub": ("", "Push the finished student."),
    "hub_model_id": ("ID", "Repository (default: your name and the output folder's)."),
    "hub_private_repo": ("", "Make the repository private."),
}
