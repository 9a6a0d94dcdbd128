"""Classes of whole images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.augment import image_augmentation
from ..data.datasets import Viewed
from ..data.loading import Data, load_data
from ..data.views import EvalTransform, TrainTransform, View
from ..evaluation.measurement import ALL, check_teacher, measure, measure_teacher, side_by_side
from ..evaluation.metrics import agreement, compute_agreement, compute_metrics
from ..models.kinds import CLASSIFIER
from ..models.loading import load_model
from ..publishing.wording import CLASSIFICATION, WORDINGS
from ..training.cached_teacher import CachedTeacher
from ..training.teacher import Teacher
from .task import Source, Task


class ImageClassification(Task):
    """Each image has one class."""

    words, kind, logged = WORDINGS[CLASSIFICATION], CLASSIFIER, ("top1", "top5", "nll", "ece", "agreement")

    def load_data(self, name: str, *, models: Sequence[Source] = (), **options: Any) -> Data:
        return load_data(name, **options)

    def load_student(self, student: Source, label_names: Sequence[str], **start: Any) -> PreTrainedModel:
        return load_model(student.name, label_names=label_names, **start, **student.options)

    def finish_processor(self, processor: BaseImageProcessor, data: Data) -> None:
        pass

    def transform(self, view: View, others: Mapping[str, View], data: Data, options: Any) -> TrainTransform:
        return TrainTransform(
            view,
            others,
            crop_scale=data.crop_scale if options.crop_scale is None else options.crop_scale,
            crop_padding=options.crop_padding,
            flip=data.flip if options.flip is None else options.flip,
            augment=image_augmentation(options.auto_augment, options.random_erasing, options.cutout),
            exact_decoding=options.exact_decoding,
        )

    def evaluation(self, data: Data, view: View, *, label_free: bool) -> dict[str, Any]:
        metrics = compute_agreement if label_free else compute_metrics
        return {"eval_dataset": Viewed(data.eval, EvalTransform(view)), "compute_metrics": metrics}

    def check_teacher(self, teacher: Teacher, data: Data, *, allow_weak: bool, device: torch.device) -> None:
        check_teacher(teacher, data.eval, allow_weak=allow_weak, device=device)

    def measure(
        self,
        model: nn.Module,
        data: Data,
        view: View,
        columns: Tensor | None = None,
        window: int | None = None,
        **options: Any,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        return measure(model, data.eval, view, columns=ALL if columns is None else columns.cpu().numpy(), **options)

    def beside(
        self,
        answers: Any,
        teachers: Sequence[Teacher | CachedTeacher],
        data: Data,
        weights: Sequence[float] | None,
        *,
        labelled: bool,
        window: int | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        return side_by_side(answers, teachers, data.eval, weights=weights, labelled=labelled, **options)

    def compare(
        self, models: Mapping[str, Teacher], data: Data, *, window: int | None = None, **options: Any
    ) -> dict[str, dict[str, Any]]:
        measured = {id(model): measure_teacher(model, data.eval, **options) for model in set(models.values())}
        found = {role: {**measured[id(model)][1]} for role, model in models.items()}
        for role in models.keys() - {"teacher"} if "teacher" in models else ():
            answers = (measured[id(models[each])][0] for each in (role, "teacher"))
            found[role]["agreement"] = agreement(*answers)
        return found

    def draw(self, *args: Any, **options: Any) -> None:
        pass
