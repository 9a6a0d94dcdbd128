"""What `hf-gdkd analyze` does for classifiers of whole images, with the models at hand."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from ..data.augment import image_augmentation
from ..data.datasets import Augmented, Viewed
from ..data.loading import Data, load_data
from ..data.views import TrainTransform
from ..evaluation.advice import advise
from ..evaluation.costs import describe_costs
from ..evaluation.differences import Differences
from ..evaluation.distribution import Distribution
from ..evaluation.passes import OwnViews, answers
from ..evaluation.report import Report
from ..evaluation.student_report import describe_student
from ..evaluation.teacher_report import describe_teacher
from ..evaluation.views_report import describe_views
from ..models.heads import class_names
from ..models.label_map import load_label_map
from ..models.loading import pin_revision
from ..training.auto_loss import family_of
from ..training.teacher import Teacher
from .arguments.distill_flags import DistillArguments
from .cached_analysis import cached_distribution
from .report_folder import DEFAULT_EPOCHS, distill_command, save_averages, subject

AUGMENTED_ROWS = 5000  # at most, for the predictions of strongly augmented images


def analyze_images(options: Namespace, wanted: DistillArguments) -> dict[str, Any]:
    """Look at the teacher, and at the student if there is one; writes the report and returns its numbers.

    Raises:
        InputError: what cannot be loaded, matched or read.
    """
    state = PartialState(cpu=options.device == "cpu" or not torch.cuda.is_available())
    device = torch.device(options.device or state.device)
    data = load_data(wanted.dataset, **wanted.data_options(), eval_only=True)
    models = load_models(options, wanted, data)
    pass_options = {"batch_size": options.batch_size, "device": device}
    distributions = {role: Distribution(len(data.label_names), options.temperature) for role in models}
    differences = Differences(len(data.label_names)) if "student" in models else None
    samples = Viewed(data.eval, OwnViews({role: model.view for role, model in models.items()}))
    for each in answers(models, samples, **pass_options):
        for role, logits in each.logits.items():
            distributions[role].add(logits, each.labels)
        if differences is not None:
            differences.add(each.rows, each.logits["teacher"], each.logits["student"], each.labels)
    if options.teacher_cache is not None:
        found, shown, _ = cached_distribution(options, wanted)
        augmented = None
    else:
        found, shown = distributions["teacher"], f"{data.name} ({data.eval_split})"
        augmented = augmented_distribution(models["teacher"], data, options.temperature, pass_options)
    for each in {id(x): x for x in (*distributions.values(), found, augmented, differences) if x is not None}.values():
        each.gather(device)
    numbers = subject(options, wanted, shown) | {"images": found.images}
    if not state.is_main_process:
        return numbers
    names = data.label_names
    against = "" if options.student is None else f", student: {options.student}"
    report = Report(f"Teacher: {options.teacher}{against}", f"{found.images:,} images of {shown}")
    numbers |= describe_teacher(report, found, names, augmented)
    if differences is not None:
        numbers["comparison"] = describe_student(
            report, differences, distributions, models, data.eval, names, **pass_options
        )
    numbers["advice"] = advise(
        report, found, augmented or found, distill_command(options, wanted), epochs=DEFAULT_EPOCHS,
        features=options.teacher_cache is None,
        student=family_of(models["student"].model) if "student" in models else None,
    )  # fmt: skip
    numbers["cost"] = describe_costs(report, models, len(names), **pass_options)
    describe_views(report, models, data.eval, names, crop_scale=data.crop_scale, flip=data.flip)
    save_averages(options.output_dir, found)
    report.write(options.output_dir, numbers)
    return numbers


def load_models(options: Namespace, wanted: DistillArguments, data: Data) -> dict[str, Teacher]:
    """Load the teacher, and the student if there is one, and match them to the data set's classes."""
    loaded = {}
    for role in ["teacher"] if options.student is None else ["teacher", "student"]:
        name = getattr(options, role)
        revision = pin_revision(name, getattr(options, f"{role}_revision"))
        model = Teacher.load(name, revision=revision, trust_remote_code=wanted.trust_remote_code)
        data.label_names = data.label_names or class_names(model.model)
        label_map = load_label_map(wanted.label_map) if wanted.label_map and role == "teacher" else None
        model.match(data.label_names, model.view, label_map, data_name=data.name)
        loaded[role] = model
    return loaded


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
