"""What `hf-gdkd analyze` does: from its flags to the report."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset

from ..data.augment import image_augmentation
from ..data.cache_records import kept_classes
from ..data.datasets import Augmented, Viewed
from ..data.fingerprint import fingerprint
from ..data.loading import Data, load_data
from ..data.teacher_cache import TeacherCache
from ..data.views import TrainTransform
from ..errors import InputError
from ..evaluation.advice import advise, describe_costs
from ..evaluation.differences import Differences
from ..evaluation.distribution import Distribution
from ..evaluation.passes import OwnViews, answers, cached_answers
from ..evaluation.report import PAGE, Report
from ..evaluation.student_report import describe_student
from ..evaluation.teacher_report import describe_teacher
from ..evaluation.views_report import describe_views
from ..models.heads import class_names
from ..models.label_map import load_label_map
from ..models.loading import pin_revision
from ..publishing.wording import CLASSIFICATION
from ..training.run_files import read_run_settings
from ..training.teacher import Teacher
from .arguments.distill_flags import DistillArguments
from .arguments.other_flags import analyze_parser
from .evaluated_data import parse_data, trained_with
from .pixel_analysis import analyze_pixels

logger = logging.getLogger(__name__)

AUGMENTED_ROWS = 5000  # at most, for the predictions of strongly augmented images


class Models(NamedTuple):
    """The models of an analysis, matched to the data set's classes; the teacher is None where a cache is enough."""

    teacher: Teacher | None
    student: Teacher | None
    teacher_name: str


def parse_analysis(argv: Sequence[str] | None = None) -> tuple[Namespace, DistillArguments]:
    """Parse the flags of `hf-gdkd analyze`: its own options, and the data.

    Raises:
        InputError: no teacher, no data set, or flags that do not go together.
    """
    parser, words = analyze_parser(), list(sys.argv[1:] if argv is None else argv)
    deciding = {"student": "student_revision", "teacher_cache": "", "teacher": "teacher_revision"}
    options, wanted = parse_data(parser, words, deciding)
    if options.teacher_cache is not None:
        TeacherCache.open(options.teacher_cache)
    if options.teacher is None and options.teacher_cache is not None:
        settings = read_run_settings(options.teacher_cache) or {}
        options.teacher = (settings.get("teacher") or [None])[0]
        options.teacher_revision = (settings.get("teacher_revision") or [None])[0]
    if options.teacher is None:
        raise InputError("there is no teacher: use --teacher, or --teacher_cache with a folder that was recorded.")
    if wanted.task != CLASSIFICATION and options.teacher_cache is not None:
        raise InputError(f"a teacher cache is for {CLASSIFICATION}, and this is {wanted.task}: leave it out.")
    if not options.temperature > 0:
        raise InputError(f"temperature is {options.temperature}: use a number above 0.")
    return options, wanted


def analyze(options: Namespace, wanted: DistillArguments) -> dict[str, Any]:
    """Look at the teacher, and at the student if there is one; writes the report and returns its numbers.

    Raises:
        InputError: what cannot be loaded, matched, read or written.
    """
    check_output(Path(options.output_dir))
    if wanted.task != CLASSIFICATION:
        return analyze_pixels(options, wanted)
    state = PartialState(cpu=options.device == "cpu" or not torch.cuda.is_available())
    device = torch.device(options.device or state.device)
    data = load_data(wanted.dataset, **wanted.data_options(), eval_only=True)
    models = load_models(options, wanted, data)
    pass_options = {"batch_size": options.batch_size, "device": device}
    augmented = differences = None
    by_role = {role: model for role, model in models._asdict().items() if isinstance(model, Teacher)}
    distributions = {role: Distribution(len(data.label_names), options.temperature) for role in by_role}
    if by_role:
        differences = Differences(len(data.label_names)) if "student" in by_role else None
        samples = Viewed(data.eval, OwnViews({role: model.view for role, model in by_role.items()}))
        for each in answers(by_role, samples, **pass_options):
            for role, logits in each.logits.items():
                distributions[role].add(logits, each.labels)
            if differences is not None:
                differences.add(each.rows, each.logits["teacher"], each.logits["student"], each.labels)
    if options.teacher_cache is not None:
        found, shown = cached_distribution(options, wanted)
    else:
        found, shown = distributions["teacher"], f"{data.name} ({data.eval_split})"
        augmented = augmented_distribution(models.teacher, data, options.temperature, pass_options)
    for each in {id(x): x for x in (*distributions.values(), found, augmented, differences) if x is not None}.values():
        each.gather(device)
    if found.images == 0:
        raise InputError(f"the teacher cache {options.teacher_cache} holds no first view of an image: record it first.")
    numbers = {"teacher": options.teacher, "student": options.student, "data": shown, "images": found.images}
    if not state.is_main_process:
        return numbers
    names = data.label_names
    against = "" if options.student is None else f", student: {options.student}"
    report = Report(f"Teacher: {models.teacher_name}{against}", f"{found.images:,} images of {shown}")
    numbers |= describe_teacher(report, found, names, augmented)
    if differences is not None:
        numbers["comparison"] = describe_student(
            report, differences, distributions, by_role, data.eval, names, **pass_options
        )
    numbers["advice"] = advise(report, found, augmented or found, distill_command(options, wanted))
    if by_role:
        numbers["cost"] = describe_costs(report, by_role, len(names), **pass_options)
        describe_views(report, by_role, data.eval, names, crop_scale=data.crop_scale, flip=data.flip)
    save_averages(Path(options.output_dir), found)
    report.write(options.output_dir, numbers)
    return numbers


def check_output(folder: Path) -> None:
    """Refuse a folder that cannot be written to, before anything is computed.

    Raises:
        InputError: it is a file, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output_dir {folder} cannot be made: {error.strerror}. Use another folder.") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"output_dir {folder} cannot be written to: use another folder.")


def load_models(options: Namespace, wanted: DistillArguments, data: Data) -> Models:
    """Load and match the models; a teacher with a cache only if there is a student to compare with it."""
    loaded = {}
    roles = ["teacher"] if options.student is None else ["teacher", "student"]
    for role in roles if options.teacher_cache is None or options.student is not None else ():
        name = getattr(options, role)
        revision = pin_revision(name, getattr(options, f"{role}_revision"))
        model = Teacher.load(name, revision=revision, trust_remote_code=wanted.trust_remote_code)
        data.label_names = data.label_names or class_names(model.model)
        label_map = load_label_map(wanted.label_map) if wanted.label_map and role == "teacher" else None
        model.match(data.label_names, model.view, label_map, data_name=data.name)
        loaded[role] = model
    if data.label_names is None:
        data.label_names = TeacherCache.open(options.teacher_cache).description["labels"]
    return Models(loaded.get("teacher"), loaded.get("student"), options.teacher)


def cached_distribution(options: Namespace, wanted: DistillArguments) -> tuple[Distribution, str]:
    """What a cache holds of the first view of its rows, and what these are called.

    Raises:
        InputError: a cache of other rows, of other classes, or of the most probable classes only.
    """
    cache = TeacherCache.open(options.teacher_cache)
    if kept_classes(cache.dtype):
        raise InputError(
            f"the teacher cache {cache.folder} keeps the most probable classes only ({cache.dtype}), and an analysis "
            "needs all: record it as float16 or int8, or leave --teacher_cache out."
        )
    read = wanted.data_options() | {"eval_split": wanted.train_split, "validation_rows": None}
    data = load_data(wanted.dataset, **read, eval_only=True)
    rows, of = data.train_split_rows, cache.description
    contents = of.get("dataset", {}).get("contents")
    if len(rows) != cache.rows or contents not in (None, fingerprint(rows)):
        raise InputError(
            f"the teacher cache {cache.folder} has {cache.rows:,} rows of other images than the split "
            f"{wanted.train_split} of {wanted.dataset} with its {len(rows):,}: use the data set that it was recorded "
            "with."
        )
    labels = labels_of(rows)
    mixed = any(of.get("augmentation", {}).get(f"{name}_alpha") for name in ("mixup", "cutmix"))
    if mixed and labels is not None:
        logger.warning("The cached images are mixed: they have no labels of their own, so nothing is judged.")
        labels = None
    if labels is not None and data.label_names != of.get("labels", data.label_names):
        raise InputError(f"the teacher cache {cache.folder} is of other classes than {wanted.dataset} has.")
    recorded = np.flatnonzero(cache.recorded(0))
    found = Distribution(cache.classes, options.temperature)
    own = None if labels is None else labels[torch.from_numpy(recorded)]
    for each in cached_answers(cache, recorded.tolist(), own):
        found.add(each.logits["teacher"], each.labels)
    return found, f"{data.name} ({wanted.train_split}, first cached view)"


def labels_of(rows: Dataset) -> torch.Tensor | None:
    """The labels (N) of rows, without decoding an image; None where there are none."""
    if "labels" not in rows.column_names:
        return None
    labels = rows.select_columns("labels").with_format("arrow")[:]["labels"].to_numpy()
    return torch.from_numpy(np.array(labels, np.int64))


def augmented_distribution(
    teacher: Teacher, data: Data, temperature: float, pass_options: dict[str, Any]
) -> Distribution:
    """The teacher's predictions for images as training would show them, with RandAugment; of at most 5,000."""
    rows = data.eval
    if len(rows) > AUGMENTED_ROWS:
        rows = rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[:AUGMENTED_ROWS]))
    transform = TrainTransform(
        teacher.view, crop_scale=data.crop_scale, flip=data.flip, augment=image_augmentation("randaugment")
    )
    found = Distribution(len(data.label_names), temperature)
    for each in answers({"pixel_values": teacher}, Augmented(rows, transform, seed=0), **pass_options):
        found.add(each.logits["pixel_values"], each.labels)
    return found


def save_averages(folder: Path, found: Distribution) -> None:
    """Write averages.npz: the whole matrices (C, C), of which the page and the JSON show the largest entries."""
    averages = {name: found.average(name).astype(np.float32) for name in ("prediction", "rest", "renormalized")}
    counts = {"confusions": found.sums["confusions"].numpy().astype(np.int64)} if found.labelled else {}
    np.savez_compressed(folder / "averages.npz", **averages, **counts)


def distill_command(options: Namespace, wanted: DistillArguments) -> str:
    """The start of the command that trains a student of this teacher."""
    student = trained_with(options.student, options.student_revision) if options.student else None
    words = ["hf-gdkd", "distill", "--teacher", options.teacher, "--dataset", wanted.dataset]
    words += ["--student", (student or {}).get("student") or options.student or "deit-tiny"]
    words += ["--teacher_cache", options.teacher_cache] if options.teacher_cache else []
    return shlex.join(words)


def where(folder: str) -> str:
    """The page of a report."""
    return str(Path(folder, PAGE))
