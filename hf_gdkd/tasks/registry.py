"""Name -> task."""

from __future__ import annotations

from ..errors import InputError
from ..publishing.wording import CLASSIFICATION, SEGMENTATION
from .image_classification import ImageClassification
from .semantic_segmentation import SemanticSegmentation
from .task import Task

TASKS: dict[str, Task] = {CLASSIFICATION: ImageClassification(), SEGMENTATION: SemanticSegmentation()}


def task_of(name: str) -> Task:
    """The task of that name.

    Examples:
        >>> from hf_gdkd.tasks import task_of
        >>> task_of("semantic-segmentation").words.judged
        'mean_iou'

    Raises:
        InputError: there is none.
    """
    if name not in TASKS:
        raise InputError(f"task is {name!r}: choose one of {', '.join(TASKS)}.")
    return TASKS[name]
