"""From the arguments of a run to its training data."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.augment import Mix
from ..data.datasets import Augmented
from ..data.loading import Data
from ..data.streaming import AugmentedStream
from ..data.views import TrainTransform, View, decoded_side
from ..tasks import task_of
from ..training.cached_teacher import CachedTeacher
from ..training.config import GDKDConfig
from ..training.teacher import Teacher
from .arguments.distill_flags import DistillArguments


def training_data(
    script: DistillArguments, args: GDKDConfig, data: Data, view: View, teachers: Sequence[Teacher | CachedTeacher]
) -> Augmented | AugmentedStream:
    """The training rows, augmented once and seen by the student (`view`) and by every teacher whose view differs."""
    caches = {teacher.pixels: teacher.cache for teacher in teachers if isinstance(teacher, CachedTeacher)}
    others = {  # what a cache holds shall not depend on the student
        teacher.pixels: teacher.view
        for teacher in teachers
        if teacher.view is not view and (caches or not view.same_geometry(teacher.view))
    }
    transform = task_of(script.task).transform(view, others, data, script)
    if caches and isinstance(transform, TrainTransform) and not script.exact_decoding:
        transform.least = decoded_side(teacher.view for teacher in teachers)
    if script.streaming:
        process = {"process_index": args.process_index, "num_processes": args.world_size}
        options = {"skip_bad_images": script.on_bad_image == "skip"}
        if script.shuffle_buffer is not None:
            options["shuffle_buffer"] = script.shuffle_buffer
        return AugmentedStream(data.train, transform, seed=args.seed, **options, **process)
    mix = None
    if script.mixup_alpha + script.cutmix_alpha > 0:
        alphas = {"mixup_alpha": script.mixup_alpha, "cutmix_alpha": script.cutmix_alpha}
        views = [teacher.view for teacher in teachers] if caches else [view, *others.values()]
        mix = Mix(len(data.label_names), max(each.size for each in views), **alphas)
    options = {"repeats": script.repeated_augmentation, "views": script.cache_views, "caches": caches}
    return Augmented(data.train, transform, seed=args.seed, mix=mix, **options)
