"""The teachers of a run, live or from their caches, and what a cache depends on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..data.fingerprint import fingerprint
from ..data.loading import Data
from ..data.selection import ROW
from ..data.sources import EMBEDDED
from ..data.teacher_cache import DESCRIPTION, TeacherCache, logits_key, read_description
from ..data.views import View, decoded_side
from ..errors import InputError
from ..models.configuration import names_of, read_config
from ..models.label_map import load_label_map
from ..models.loading import load_processor
from ..models.names import resolve_name
from ..tasks import task_of
from ..training.cached_teacher import CachedTeacher, check_enough
from ..training.config import GDKDConfig
from ..training.distributed import place_teacher
from ..training.run_files import read_run_settings, write_run_settings
from ..training.teacher import Teacher
from .arguments.distill_flags import DistillArguments
from .arguments.settings_file import run_settings

MOST_VIEWS = 50  # by default: with more, nothing was gained (Faghri et al., arXiv 2303.08983, table of replayed views)
AUGMENTATION = (
    *("crop_padding", "auto_augment", "random_erasing", "cutout"),
    *("mixup_alpha", "cutmix_alpha", "repeated_augmentation"),
)

CACHE_SETTINGS = {
    *("teacher", "teacher_revision", "teacher_dtype", "bf16", "fp16", "label_map", "label_free", "allow_weak_teacher"),
    *("dataset", "dataset_config", "dataset_revision", "image_column", "label_column", "on_bad_image"),
    *("train_split", "eval_split", "train_rows", "validation_rows", "seed", "cache_views", "cache_dtype"),
    *("crop_scale", "flip", "exact_decoding", *AUGMENTATION),
}


def prepare_teachers(
    script: DistillArguments, args: GDKDConfig, data: Data, view: View, *, check: bool = True
) -> list[Teacher | CachedTeacher]:
    """Load the teachers: matched to the data set's classes, placed, and checked on a few hundred of its images.

    Each has its pixels under a key of its own in a batch. With `--teacher_cache` a teacher is loaded if its folder
    lacks the logits of a row and view of this run, else never. Without `check` a cache may also be one to be made.

    Raises:
        InputError: what `Teacher.load`, `Teacher.match` and `check_teacher` raise; a cache of something else.
    """
    teachers: list[Teacher | CachedTeacher] = []
    own_views = []
    if script.teacher_cache is not None:
        trust = script.trust_remote_code
        own_views = [
            View(load_processor(name, revision=commit, trust_remote_code=trust)) for name, commit in script.teachers()
        ]
    for i, (name, _) in enumerate(script.teachers()):

        def load(i: int = i) -> Teacher:
            teacher = load_matched(script, args, i, data.label_names, view, data_name=data.name)
            place_teacher(teacher, args)
            if not script.label_free:
                task = task_of(script.task)
                task.check_teacher(teacher, data, allow_weak=script.allow_weak_teacher, device=args.device)
            return teacher

        if script.teacher_cache is None:
            teachers.append(load())
            continue
        of = describe(script, args, data, i, own_views)
        cache = TeacherCache(
            script.teacher_cache[i], of, rows=len(data.train_split_rows), classes=len(data.label_names),
            views=script.cache_views, dtype=script.cache_dtype,
        )  # fmt: skip
        teacher = CachedTeacher(cache, load, name=name, view=own_views[i], pixels=_pixels(i))
        if check and not cache.is_full(data.train[ROW]):
            check_writable(cache.folder)
            if args.process_index == 0 and read_run_settings(cache.folder) is None:
                with suppress(OSError):  # on a full disk; then `cache verify` says that it is not there
                    write_run_settings(cache.folder, cache_settings(script, args, i))
            _ = teacher.live  # what is wrong with it is said before training
        teachers.append(teacher)
    return teachers


def name_classes(script: DistillArguments, data: Data) -> None:
    """Without labels, the classes of the data set are the teacher's."""
    if script.label_free:
        name, commit = script.teachers()[0]
        source = {"revision": commit, "trust_remote_code": script.trust_remote_code}
        data.label_names = names_of(read_config(resolve_name(name), **source))


def cache_settings(script: DistillArguments, args: GDKDConfig, i: int) -> dict[str, Any]:
    """The settings of a run that the logits of teacher number i depend on: what `hf-gdkd cache` needs again."""
    settings = {key: value for key, value in run_settings(script, args).items() if key in CACHE_SETTINGS}
    of_teachers = ("teacher", "teacher_revision", "label_map")
    return settings | {key: [settings[key][i]] for key in of_teachers if settings.get(key)}


def load_matched(
    script: DistillArguments,
    args: GDKDConfig,
    i: int,
    label_names: Sequence[str],
    view: View,
    *,
    data_name: str = "data set",
) -> Teacher:
    """Load a run's teacher number i, and match it to these classes and to the student's view."""
    name, revision = script.teachers()[i]
    source = {"revision": revision, "trust_remote_code": script.trust_remote_code}
    teacher = Teacher.load(name, kind=task_of(script.task).kind, dtype=args.teacher_dtype, pixels=_pixels(i), **source)
    teacher.match(label_names, view, label_map_of(script, i), data_name=data_name)
    return teacher


def teacher_of_step(
    script: DistillArguments,
    args: GDKDConfig,
    i: int,
    label_names: Sequence[str],
    view: View,
    batch: Mapping[str, Tensor],
) -> Teacher | CachedTeacher:
    """A run's teacher number i, to repeat a step: live, or reading the logits that its batches had from a cache."""

    def load() -> Teacher:
        teacher = load_matched(script, args, i, label_names, view)
        place_teacher(teacher, args)
        return teacher

    if (logits := batch.get(logits_key(_pixels(i)))) is None:
        return load()
    nothing = Path(args.output_dir, "no-cache")  # the batches have what was read
    cache = TeacherCache(nothing, {}, rows=0, classes=logits.shape[-1], views=1, dtype=script.cache_dtype)
    teacher = CachedTeacher(cache, load, name=script.teachers()[i][0], pixels=_pixels(i))
    teacher.recording = False
    return teacher


def _pixels(i: int) -> str:
    return "teacher_pixel_values" if i == 0 else f"teacher_pixel_values_{i + 1}"


def label_map_of(script: DistillArguments, i: int) -> dict[str, str] | None:
    """{data set class: class of teacher number i}, as the user has it in a file."""
    return load_label_map(script.label_map[i]) if script.label_map else None


def set_views(script: DistillArguments, args: GDKDConfig, rows: int, *, trains: bool = True) -> None:
    """Set `cache_views` where the user did not: as a folder that is there has it, or one an epoch, at most 50.

    Raises:
        InputError: more views than a run that `trains` would see, in a folder that does not have them.
    """
    if script.teacher_cache is None:
        return
    steps = math.ceil(rows / (args.train_batch_size * args.world_size * args.gradient_accumulation_steps))
    epochs = math.ceil(args.max_steps / steps) if args.max_steps > 0 else math.ceil(args.num_train_epochs)
    seen = max(epochs, 1) * script.repeated_augmentation
    folders = [folder for folder in script.teacher_cache if Path(folder, DESCRIPTION).exists()]
    there = [read_description(folder)["views"] for folder in folders]
    if script.cache_views is None:
        script.cache_views = there[0] if there else min(seen, MOST_VIEWS)
    elif trains and script.cache_views > seen and script.cache_views not in there:
        raise InputError(
            f"cache_views is {script.cache_views}, and this run sees {seen} views of an image: use at most {seen}."
        )


def check_storage(script: DistillArguments, args: GDKDConfig) -> None:
    """Refuse a cache that does not hold what the loss needs.

    Raises:
        InputError: streamed data, a loss on features, or the M most probable classes for a loss that needs all.
    """
    if script.teacher_cache is None:
        return
    if script.streaming:
        raise InputError("a streamed image has no number to store logits by: leave --teacher_cache or --streaming out.")
    check_enough(script.cache_dtype, args.build_loss(), args.loss)


def describe(script: DistillArguments, args: GDKDConfig, data: Data, i: int, views: Sequence[View]) -> dict[str, Any]:
    """What the logits of teacher number i depend on: itself, the data set, the transform, the seed, the classes."""
    view, (name, revision) = views[i], script.teachers()[i]
    teacher = {"name": resolve_name(name), "commit": revision}
    if Path(name).is_dir():
        teacher = {"name": Path(name).resolve().name, "weights": _hash_of_weights(name)}
    augmentation = {key: getattr(script, key) for key in AUGMENTATION}
    augmentation["crop_scale"] = data.crop_scale if script.crop_scale is None else script.crop_scale
    augmentation["flip"] = data.flip if script.flip is None else script.flip
    augmentation["decoded_side"] = None if script.exact_decoding else decoded_side(views)
    if script.mixup_alpha + script.cutmix_alpha > 0:  # the partner is drawn from the rows that are trained on
        augmentation["mixed_with"] = hashlib.sha256(np.asarray(data.train[ROW]).tobytes()).hexdigest()[:16]
        augmentation["mixed_at"] = list(max(each.size for each in views))
    local = data.name in EMBEDDED or Path(data.name).exists()
    dataset = {"name": Path(data.name).name if local else data.name, "revision": data.revision}
    mixed = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    return {
        "teacher": teacher | {"precision": args.teacher_dtype or mixed},
        "view": {
            "size": list(view.size),
            "interpolation": view.interpolation.value,
            "mean": [round(float(m), 4) for m in view.mean],
            "std": [round(float(s), 4) for s in view.std],
        },
        "dataset": dataset | {"split": script.train_split, "contents": fingerprint(data.train_split_rows)},
        "augmentation": augmentation,
        "seed": args.seed,
        "labels": list(data.label_names),
        "label_map": label_map_of(script, i),
    }


def check_writable(folder: Path) -> None:
    """Refuse a folder in which nothing can be recorded.

    Raises:
        InputError: it cannot be made, or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"the teacher's logits cannot be recorded in {folder}: {error.strerror}. Choose another --teacher_cache."
        ) from error


def _hash_of_weights(folder: str) -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
