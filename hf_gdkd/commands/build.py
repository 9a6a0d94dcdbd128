"""From the arguments of a run to its teachers and its training data."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.augment import Mix, image_augmentation
from ..data.datasets import Augmented
from ..data.loading import Data
from ..data.streaming import AugmentedStream
from ..data.views import TrainTransform, View
from ..training.config import GDKDConfig
from ..training.teacher import Teacher
from .arguments.fields import DistillArguments


def load_teachers(script: DistillArguments, args: GDKDConfig) -> list[Teacher]:
    """The teachers by name, each with its own view, under a key of its own in the batch."""
    teachers = [
        Teacher.load(name, revision=revision, dtype=args.teacher_dtype, trust_remote_code=script.trust_remote_code)
        for name, revision in script.teachers()
    ]
    for i, teacher in enumerate(teachers[1:], start=2):
        teacher.pixels += f"_{i}"
    return teachers


def training_data(
    script: DistillArguments, args: GDKDConfig, data: Data, view: View, teachers: Sequence[Teacher]
) -> Augmented | AugmentedStream:
    """The training rows, augmented once and seen by the student (`view`) and by every teacher whose view differs."""
    others = {teacher.pixels: teacher.view for teacher in teachers if not view.same_geometry(teacher.view)}
    transform = TrainTransform(
        view,
        others,
        crop_scale=data.crop_scale if script.crop_scale is None else script.crop_scale,
        crop_padding=script.crop_padding,
        flip=data.flip if script.flip is None else script.flip,
        augment=image_augmentation(script.auto_augment, script.random_erasing, script.cutout),
    )
    if script.streaming:
        process = {"process_index": args.process_index, "num_processes": args.world_size}
        options = {"skip_bad_images": script.on_bad_image == "skip"}
        if script.shuffle_buffer is not None:
            options["shuffle_buffer"] = script.shuffle_buffer
        return AugmentedStream(data.train, transform, seed=args.seed, **options, **process)
    mix = None
    if script.mixup_alpha + script.cutmix_alpha > 0:
        alphas = {"mixup_alpha": script.mixup_alpha, "cutmix_alpha": script.cutmix_alpha}
        mix = Mix(len(data.label_names), max(each.size for each in (view, *others.values())), **alphas)
    return Augmented(data.train, transform, seed=args.seed, mix=mix, repeats=script.repeated_augmentation)
