"""The interface of a task: what a run asks it for, from the data set to the numbers in the card."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.loading import Data
from ..data.views import View
from ..models.kinds import Kind
from ..publishing.wording import Wording
from ..training.cached_teacher import CachedTeacher
from ..training.teacher import Teacher


class Source(NamedTuple):
    """A model's name, with what is needed to load it."""

    name: str
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def options(self) -> dict[str, Any]:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


class Task(ABC):
    """What differs between tasks; the trainer, checkpoints, teachers and the Hub do not know which it is.

    Attributes:
        words: how the card names the task, its model and its metrics.
        kind: which models of transformers do it.
        logged: the numbers of a measurement that a run logs and may choose its best checkpoint by.
    """

    words: Wording
    kind: Kind
    logged: tuple[str, ...]

    @abstractmethod
    def load_data(self, name: str, *, models: Sequence[Source] = (), **options: Any) -> Data:
        """The data set; `models` are the teachers and the student, `options` what the flags say of it."""

    @abstractmethod
    def load_student(self, student: Source, label_names: Sequence[str], **start: Any) -> PreTrainedModel:
        """The student, with a head for these classes; `start` is what `load_model` takes for what it starts from."""

    @abstractmethod
    def finish_processor(self, processor: BaseImageProcessor, data: Data) -> None:
        """Set what the image processor that is saved with the student shall say of the data."""

    @abstractmethod
    def transform(self, view: View, others: Mapping[str, View], data: Data, options: Any) -> Any:
        """The random crop and flip of a training sample, and the views of it; `options` are the run's flags."""

    @abstractmethod
    def evaluation(self, data: Data, view: View, *, label_free: bool) -> dict[str, Any]:
        """What Trainer needs to evaluate: `eval_dataset` and `compute_metrics`."""

    @abstractmethod
    def check_teacher(self, teacher: Teacher, data: Data, *, allow_weak: bool, device: torch.device) -> None:
        """Print how good the teacher is on a few images; an InputError where that is near chance."""

    @abstractmethod
    def measure(
        self,
        model: nn.Module,
        data: Data,
        view: View,
        columns: Tensor | None = None,
        window: int | None = None,
        **options: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """What the model answers to the evaluation rows, for `beside`, and its numbers.

        Args:
            model, data, view: the model, and how it sees the rows.
            columns: index (C,) of the model's class for each of the data set's; None: the same.
            window: side of the windows in which maps are evaluated; None: whole images.
            **options: `device` and `workers`.
        """

    @abstractmethod
    def beside(
        self,
        answers: Any,
        teachers: Sequence[Teacher | CachedTeacher],
        data: Data,
        weights: Sequence[float] | None,
        *,
        labelled: bool,
        **options: Any,
    ) -> dict[str, Any]:
        """The student's `agreement` with its teachers, and `teachers`: the numbers of each by its name."""

    @abstractmethod
    def compare(self, models: Mapping[str, Teacher], data: Data, **options: Any) -> dict[str, dict[str, Any]]:
        """The numbers of models by their role, and of others than the one called teacher their `agreement` with it."""

    @abstractmethod
    def draw(
        self,
        folder: Path,
        model: nn.Module,
        view: View,
        teachers: Sequence[Teacher | CachedTeacher],
        data: Data,
        window: int | None,
    ) -> None:
        """Draw what the student answers, where the task has such a picture."""
