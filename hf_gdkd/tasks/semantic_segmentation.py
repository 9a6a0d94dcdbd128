"""A class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.datasets import Viewed
from ..data.label_space import ModelClasses
from ..data.loading import Data
from ..data.segmentation import load_segmentation
from ..data.segmentation_views import SegmentationEvalTransform, SegmentationTransform, SegmentationView
from ..data.views import View
from ..errors import InputError
from ..evaluation.segmentation import SegmentationMetrics
from ..evaluation.segmentation_measurement import Segmenter, measure_segmenters
from ..evaluation.segmentation_pictures import draw_segmentation
from ..models.configuration import names_of, read_config
from ..models.kinds import SEGMENTER
from ..models.loading import load_processor
from ..models.names import is_own_network, resolve_name
from ..models.segmentation import load_segmenter
from ..publishing.wording import SEGMENTATION, WORDINGS
from ..training.run_files import SEGMENTATION_PICTURE
from ..training.teacher import Teacher
from .task import Source, Task

CHECKED = 20  # images that a teacher is checked on


class SemanticSegmentation(Task):
    """Each pixel has one class, or none (255)."""

    words, kind, logged = WORDINGS[SEGMENTATION], SEGMENTER, ("mean_iou", "pixel_accuracy", "agreement")

    def load_data(self, name: str, *, models: Sequence[Source] = (), **options: Any) -> Data:
        return load_segmentation(name, models=[each for each in map(_classes, models) if each], **options)

    def load_student(self, student: Source, label_names: Sequence[str], **start: Any) -> PreTrainedModel:
        return load_segmenter(student.name, label_names=label_names, **start, **student.options)

    def finish_processor(self, processor: BaseImageProcessor, data: Data) -> None:
        if hasattr(processor, "do_reduce_labels"):
            processor.do_reduce_labels = data.reduce_labels

    def transform(self, view: View, others: Mapping[str, View], data: Data, options: Any) -> SegmentationTransform:
        return SegmentationTransform(
            view,
            others,
            crop_size=options.crop_size and (options.crop_size[0], options.crop_size[-1]),
            flip=data.flip if options.flip is None else options.flip,
            **({} if options.scale_range is None else {"scale": tuple(options.scale_range)}),
        )

    def evaluation(self, data: Data, view: SegmentationView, *, label_free: bool) -> dict[str, Any]:
        rows = Viewed(data.eval, SegmentationEvalTransform(view))
        return {"eval_dataset": rows, "compute_metrics": SegmentationMetrics(len(data.label_names))}

    def check_teacher(self, teacher: Teacher, data: Data, *, allow_weak: bool, device: torch.device) -> None:
        rows = data.eval.shuffle(seed=0).select(range(min(CHECKED, len(data.eval))))
        (numbers,), _ = measure_segmenters([Segmenter.of(teacher)], rows, data.label_names, device=device)
        iou, chance = numbers["mean_iou"], 1 / len(data.label_names)
        if PartialState().is_main_process:
            print(f"{teacher.name}: mean IoU {iou:.1%} on {len(rows)} images")
        if iou <= chance and not allow_weak:
            raise InputError(
                f"the teacher's mean IoU is {iou:.1%} on {len(rows)} images, no more than that of one class everywhere "
                f"can be ({chance:.1%}): its classes may be in another order, its image processor may belong to "
                "another model, or it was not trained on such images; use --label_map or another --teacher, or accept "
                "it with --allow_weak_teacher."
            )

    def measure(
        self, model: nn.Module, data: Data, view: SegmentationView, columns: Tensor | None = None, **options: Any
    ) -> tuple[Segmenter, dict[str, Any]]:
        student = Segmenter(model, view, columns)
        return student, measure_segmenters([student], data.eval, data.label_names, **options)[0][0]

    def beside(
        self,
        answers: Segmenter,
        teachers: Sequence[Teacher],
        data: Data,
        weights: Sequence[float] | None,
        *,
        labelled: bool,
        **options: Any,
    ) -> dict[str, Any]:
        others = [Segmenter.of(teacher) for teacher in teachers]
        (own,), numbers = measure_segmenters(
            [answers], data.eval, data.label_names, teachers=others, weights=weights, **options
        )
        by_name = dict(zip([teacher.name for teacher in teachers], numbers, strict=True))
        return {"agreement": own["agreement"], "teachers": by_name}

    def compare(self, models: Mapping[str, Teacher], data: Data, **options: Any) -> dict[str, dict[str, Any]]:
        students = {role: Segmenter.of(model) for role, model in models.items() if role != "teacher"}
        teachers = {role: Segmenter.of(model) for role, model in models.items() if role == "teacher"}
        own, others = measure_segmenters(
            list(students.values()), data.eval, data.label_names, teachers=list(teachers.values()), **options
        )
        return dict(zip([*students, *teachers], [*own, *others], strict=True))

    def draw(
        self,
        folder: Path,
        model: nn.Module,
        view: SegmentationView,
        teachers: Sequence[Teacher],
        data: Data,
        window: int | None,
    ) -> None:
        teacher = Segmenter.of(teachers[0]) if len(teachers) == 1 else None
        draw_segmentation(
            folder / SEGMENTATION_PICTURE, data.eval, Segmenter(model, view), data.label_names,
            teacher=teacher, palette=data.palette, window=window,
        )  # fmt: skip


def _classes(model: Source) -> ModelClasses | None:
    """The classes of a model that segments already; None for others, such as an encoder."""
    path = resolve_name(model.name)
    if is_own_network(path):
        return None
    config = read_config(path, SEGMENTER, **model.options)
    if not any("Segmentation" in each for each in config.architectures or ()):
        return None
    processor = load_processor(model.name, **model.options)
    return ModelClasses(names_of(config), bool(getattr(processor, "do_reduce_labels", False)))
