"""From what GDKDTrainer was given as a teacher to a `Teacher` that suits its student: classes, pixels, precision."""

from __future__ import annotations

import re

from torch import nn
from transformers import BaseImageProcessor

from ..data.segmentation_views import view_of
from ..data.views import View
from ..errors import InputError
from ..models.class_matching import match_labels
from ..models.heads import class_names
from ..models.kinds import SEGMENTER, kind_of
from .cached_teacher import CachedTeacher
from .config import GDKDConfig
from .teacher import Ensemble, Teacher, num_labels_of

ORDER = (
    "pass Teacher(model, columns=...), with the index of the teacher's class for each of the student's, or "
    "Teacher(model) where the order is the same under other names"
)


def teachers_of(teacher: Teacher | Ensemble | None) -> list[Teacher]:
    """The single teachers in what GDKDTrainer listens to; none in logits from elsewhere."""
    each = getattr(teacher, "teachers", [teacher])
    return [one for one in each if isinstance(one, Teacher)]


def to_teacher(
    model: nn.Module | Teacher | Ensemble | None, student: nn.Module, args: GDKDConfig
) -> Teacher | Ensemble | None:
    """A module as a Teacher, in the precision of `teacher_dtype`; what is a teacher already stays as it is.

    Raises:
        InputError: a cache for a student that segments; the teacher is, or shares weights with, the student; a module
            whose named classes do not stand in the student's order.
    """
    check_apart(model, student)
    each = getattr(model, "teachers", [model])
    if kind_of(student) is SEGMENTER and any(isinstance(one, CachedTeacher) for one in each):
        raise InputError("a teacher cache holds the logits of whole images, not of each pixel: use the teacher itself.")
    if isinstance(model, nn.Module):
        _check_order(model, student)
        model = Teacher(model)
    for teacher in teachers_of(model):
        if args.teacher_dtype is not None and teacher.dtype is None:
            teacher.cast(args.teacher_dtype)
    return model


def check_apart(teacher: nn.Module | Teacher | Ensemble | None, student: nn.Module) -> None:
    """Refuse a teacher that shares weights with the student: they would be frozen.

    Raises:
        InputError: it does.
    """
    models = [teacher] if isinstance(teacher, nn.Module) else [each.model for each in teachers_of(teacher)]
    own = {id(p) for p in student.parameters()}
    if any(id(p) in own for model in models for p in model.parameters()):
        raise InputError(
            "the student and the teacher share weights, which a teacher keeps frozen: pass a copy as the teacher "
            "(copy.deepcopy(model))."
        )


def _check_order(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse classes that both models name, in another order or by names that do not match."""
    if None in (number := (num_labels_of(teacher), num_labels_of(student))) or number[0] != number[1]:
        return  # another number of classes has an error of its own
    names, wanted = class_names(teacher), class_names(student)
    if _only_numbered(names) or _only_numbered(wanted):
        return
    try:
        columns = match_labels(names, wanted, target_name="student")
    except InputError as error:
        what = str(error).split(";")[0].replace("the data set student", "the student")
        raise InputError(f"{what}: {ORDER}.") from error
    if columns != list(range(len(names))):
        first = next(i for i, column in enumerate(columns) if i != column)
        raise InputError(
            f"the teacher's classes have another order than the student's (class {first} is {names[first]!r} and "
            f"{wanted[first]!r}): {ORDER}."
        )


def _only_numbered(names: list[str]) -> bool:
    return all(re.fullmatch(r"(LABEL_)?\d+", name) for name in names)


def match_to_student(teacher: Teacher, student: nn.Module, view: View | None) -> None:
    """Match a teacher that has a view to the classes of the student's config and to the student's `view`.

    Raises:
        InputError: classes that do not match by name.
    """
    if num_labels_of(student) is not None:
        names = class_names(student)
    else:  # a module that does not name its classes: only a teacher that does not either has the same
        names = [f"LABEL_{i}" for i in range(teacher.model.config.num_labels)]
    try:
        teacher.match(names, view, data_name="student")
    except InputError as error:
        what = str(error).split(";")[0].replace("the data set student", "the student")
        raise InputError(
            f"{what}: name the student's classes (id2label in its config), or call match() of "
            f"Teacher.load({teacher.name!r}) with a label_map and pass that as teacher_model."
        ) from error


def student_view(train_dataset: object, processing_class: object, student: nn.Module) -> View | None:
    """How the student's pixels are made: by the data set's own transform, or else by the student's image processor."""
    transform = getattr(train_dataset, "transform", None)
    views = getattr(transform, "views", None) or {"pixel_values": getattr(transform, "view", None)}
    if isinstance(view := views.get("pixel_values"), View):
        return view
    return view_of(processing_class, student) if isinstance(processing_class, BaseImageProcessor) else None
