"""The teacher's forward passes in training: once for all micro-batches of an optimizer step where that is faster."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from .batches import BatchTrainer
from .label_maps import StepSize, size_of_map
from .teacher import Ensemble, Teacher

logger = logging.getLogger(__name__)

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
ANSWERS = "teacher_answers"  # the teacher's logits (N, C) for a micro-batch that was asked about before


class TeacherTrainer(BatchTrainer):
    """What GDKDTrainer does to ask its teacher.

    On an accelerator a pass over a small micro-batch takes nearly as long as one over a large one. So the teacher runs
    once over all micro-batches of an optimizer step, before the first of them, and each brings its logits along. It
    runs for each micro-batch on a CPU, where nothing is gained; for label maps and losses on features, whose answers
    are large; for a teacher that is cached or split over processes; where sizes differ; and from then on if the memory
    does not suffice.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._asks_at_once = self.args.device.type != "cpu"

    def ramp(self) -> float:
        """What the weight of the distillation is multiplied with in the present step."""
        # state.epoch counts micro-batches: where the last is ragged, it depends on how the steps are split.
        return self.args.ramp(self.state.global_step / self.steps_per_epoch)

    def get_batch_samples(self, *args: Any) -> tuple[list, StepSize | int]:
        """As BatchTrainer's; the micro-batches bring the teacher's logits along where it runs once for all of them."""
        batches, size = super().get_batch_samples(*args)
        return self._answered(batches) if self._can_ask_at_once(batches) else batches, size

    def ask_teacher(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The teacher's logits for a micro-batch; errors as those of `Teacher`."""
        if ANSWERS in batch:
            return batch[ANSWERS]
        with self._autocast():
            return self.teacher(batch)

    def _can_ask_at_once(self, batches: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the teacher is to run once for these micro-batches; not before it has answered one."""
        if not self._asks_at_once or len(batches) < 2 or not self._tried:
            return False
        members = self.teacher.teachers if isinstance(self.teacher, Ensemble) else [self.teacher]
        whole = not self.args.shard_teacher and not self.is_deepspeed_enabled
        if not whole or not all(isinstance(each, Teacher) for each in members) or self.parts.reads_features:
            return False
        maps = any(size_of_map(batch.get("labels")) is not None for batch in batches)
        alike = {tuple((key, batch[key].shape[1:]) for key in self._read_by_teacher(batch)) for batch in batches}
        return not maps and len(alike) == 1 and self.ramp() * self.args.kd_factor > 0

    def _read_by_teacher(self, batch: Mapping[str, Any]) -> list[str]:
        return [key for key in ("pixel_values", *self.teacher.keys) if key in batch]

    def _answered(self, batches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The micro-batches with the teacher's logits, or as they were if the memory does not suffice."""
        sizes = [len(batch["pixel_values"]) for batch in batches]
        try:
            read = {key: torch.cat([batch[key] for batch in batches]) for key in self._read_by_teacher(batches[0])}
            answers = self.ask_teacher(self._prepare_inputs(read)).clone()  # a compiled teacher's is overwritten
        except RuntimeError as error:  # not of that class on every device
            if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
                raise
            self._asks_at_once = False
            logger.warning(
                "The memory does not suffice for the teacher to run once over the %d images of an optimizer step: it "
                "runs for each micro-batch.", sum(sizes),
            )  # fmt: skip
            return list(batches)
        return [{**batch, ANSWERS: each} for batch, each in zip(batches, answers.split(sizes), strict=True)]

    def _autocast(self) -> AbstractContextManager:
        """The run's mixed precision, in which the teacher runs too unless it has a precision of its own."""
        dtype = AUTOCAST.get(self.accelerator.mixed_precision)
        return nullcontext() if dtype is None else torch.autocast(self.args.device.type, dtype)
