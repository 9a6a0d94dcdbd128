"""A teacher that runs once for each view of an image: what it said is read from a cache afterwards."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.cache_records import decode, encode, kept_classes
from ..data.fingerprint import fingerprint
from ..data.teacher_cache import TeacherCache, logits_key
from ..data.views import View
from ..errors import InputError, first_sentence
from ..losses import DistillationLoss, FeatureLoss
from .run_files import replacing
from .teacher import Teacher

logger = logging.getLogger(__name__)


class CachedTeacher(TrainerCallback):
    """Stands for a `Teacher` in training: reads its logits from a cache, and records those that are missing there.

    The batches come from a `hf_gdkd.data.Augmented` with the same cache, which reads it in the DataLoader's workers.
    The teacher itself is loaded when a batch with missing logits needs it; with a full cache, never. What it says is
    rounded as the cache stores it, so that a run that records ends with the same weights as one that reads.

    Args:
        cache: where the logits are.
        load: loads the teacher, ready to be called.
        name: what messages and cards call it.
        view: how the teacher sees an image.
        pixels: key of the teacher's own view in a batch, as in `Teacher`.

    Example:
        >>> from hf_gdkd.training.cached_teacher import CachedTeacher
        >>> teacher = CachedTeacher(cache, lambda: Teacher.load("google/vit-base"))  # doctest: +SKIP
    """

    def __init__(
        self,
        cache: TeacherCache,
        load: Callable[[], Teacher],
        *,
        name: str = "teacher",
        view: View | None = None,
        pixels: str = "teacher_pixel_values",
    ) -> None:
        self.cache, self._load, self.name, self.view, self.pixels = cache, load, name, view, pixels
        self.key = logits_key(pixels)
        self.recording = True
        self._compile_options: dict[str, Any] | None = None
        self._waiting: list[tuple[list[Tensor], torch.cuda.Event | None]] = []

    @cached_property
    def live(self) -> Teacher:
        """The teacher itself, loaded when it is first needed; the training's random numbers are as if it was not."""
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            teacher = self._load()
        if self._compile_options is not None:
            teacher.compile(**self._compile_options)
        return teacher

    def compile(self, **options: Any) -> None:
        """Compile the teacher's forward pass when it is loaded; options as `torch.compile`'s."""
        self._compile_options = options

    @property
    def keys(self) -> tuple[str, ...]:
        """What it reads of a batch."""
        return self.pixels, self.key, f"{self.key}_known", "sample_id", "view"

    @property
    def num_labels(self) -> int:
        return self.cache.classes

    def to(self, device: torch.device) -> CachedTeacher:
        """Nothing to move: `load` places the teacher, and a batch brings its logits along."""
        return self

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (N, C) in float32 for a batch with `teacher_logits` (N, C).

        Where `teacher_logits_known` (N) is there too, the teacher runs for the batch, and what was missing is recorded.
        """
        stored, known = batch[self.key], batch.get(f"{self.key}_known")
        if known is None:
            return stored
        logits = self.live(batch).float()
        if self.recording:
            self._record(known, batch["sample_id"], batch["view"], logits)
        return torch.where(known.unsqueeze(-1), stored, self._rounded(logits))

    def answers(self, rows: Dataset, measure: Callable[[Teacher], tuple[np.ndarray, dict]]) -> tuple[np.ndarray, dict]:
        """Logits (N, C) on other rows, such as those of an evaluation, and numbers: read, or measured and recorded."""
        path = self.cache.folder / f"answers-{fingerprint(rows)}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                return stored["logits"], json.loads(str(stored["numbers"]))
        logits, numbers = measure(self.live)
        if PartialState().is_main_process and self.recording:
            with suppress(OSError), replacing(path) as part:  # or it is measured again
                np.savez(part, logits=logits.astype(np.float32), numbers=np.array(json.dumps(numbers)))
        return logits, numbers

    def _rounded(self, logits: Tensor) -> Tensor:
        dtype = self.cache.dtype
        if dtype in ("float16", "float32"):  # on the device, without waiting for it
            largest = torch.finfo(getattr(torch, dtype)).max
            within = torch.where(logits.isinf(), logits, logits.clamp(-largest, largest))
            return within.to(getattr(torch, dtype)).float()
        rounded = decode(encode(logits.cpu().numpy(), dtype), dtype, self.cache.classes)
        return torch.from_numpy(rounded).to(logits.device)

    def _record(self, *batch: Tensor) -> None:
        """Write the last batch's logits while the device works on this one's."""
        self.flush()
        on_gpu = batch[0].is_cuda
        copies = [tensor.to("cpu", non_blocking=on_gpu) for tensor in batch]
        self._waiting.append((copies, torch.cuda.current_stream().record_event() if on_gpu else None))
        if not on_gpu:
            self.flush()

    def flush(self) -> None:
        """Write what waits to be written. Where that fails, say so once, and record no more."""
        while self._waiting:
            (known, rows, views, logits), ready = self._waiting.pop()
            if ready is not None:
                ready.synchronize()
            missing = ~known
            try:
                self.cache.record(rows[missing].tolist(), views[missing].tolist(), logits[missing].numpy())
            except OSError as error:
                self.recording = False
                reason = error.strerror or first_sentence(error).rstrip(".")
                logger.warning(
                    "The teacher's logits are no longer recorded in %s: %s. Training goes on without, and what was "
                    "recorded before stays valid.", self.cache.folder, reason,
                )  # fmt: skip

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.flush()


def check_caches(teacher: object, loss: DistillationLoss | None, name: str) -> None:
    """Refuse a loss of that name that needs more than the caches of a trainer's teacher, or teachers, hold.

    Raises:
        InputError: as `check_enough`.
    """
    for each in getattr(teacher, "teachers", [teacher]):
        if isinstance(each, CachedTeacher):
            check_enough(each.cache.dtype, loss, name)


def check_enough(dtype: str, loss: DistillationLoss | None, name: str) -> None:
    """Refuse a loss that needs more than a cache of this dtype holds.

    Raises:
        InputError: a loss on features, or the M most probable classes for a loss that needs all.
    """
    for member, each in ({} if loss is None else loss.members).items():
        who = member or name
        if isinstance(each, FeatureLoss):
            raise InputError(f"loss {who} compares features, and a teacher cache holds logits: leave it out.")
        plain_kd = who == "kd" and each.temperature == 1 and each.standardize == "none"
        if kept_classes(dtype) is not None and not plain_kd:
            raise InputError(
                f"cache_dtype {dtype} keeps the most probable classes and the mass of the others, which is enough for "
                f"kd at temperature 1, but {who} needs the logits of all classes: use float16 or int8."
            )
