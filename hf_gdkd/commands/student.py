"""The student of a run, and what it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from ..models.loading import load_trained
from ..tasks import task_of
from ..tasks.task import Source
from ..training.loss_options import as_dict
from .arguments.distill_flags import DistillArguments
from .teachers import label_map_of


def student_config(script: DistillArguments) -> dict[str, Any]:
    """What `--student_config` changes in the student's configuration."""
    return as_dict(script.student_config, "student_config", "num_hidden_layers=6")


def build_student(
    script: DistillArguments, source: Source, label_names: Sequence[str], *, resumes: bool = False
) -> PreTrainedModel:
    """Load or build the student; with `--student_init teacher` it has weights of the first teacher.

    Args:
        script: the run's.
        source: of the student.
        label_names: its classes.
        resumes: a checkpoint's weights will follow, so that those of a teacher need not be read.

    Raises:
        InputError: what `load_model` raises.
    """
    task, start = task_of(script.task), {"init": script.student_init, "config": student_config(script)}
    if start["init"] == "teacher" and resumes:
        start["init"] = "random"
    elif start["init"] == "teacher":
        name, revision = script.teachers()[0]
        start["teacher"] = load_trained(name, task.kind, revision=revision, trust_remote_code=script.trust_remote_code)
        start["label_map"] = label_map_of(script, 0)
    return task.load_student(source, label_names, **start)
