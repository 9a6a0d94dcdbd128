"""A distillation loss, or several, at work in a trainer: the sums of their terms over what counts in a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Trainer

from ..losses import DistillationLoss, FeatureLoss
from ..losses.gradients import has_gradients
from .feature_balance import Taps
from .feature_distillation import FeatureDistillation
from .gradient_record import GradientRecord
from .label_maps import Parts, Size, StepSize, summed_terms
from .teacher import Teacher

Terms = list[tuple[dict[str, Tensor], int | Tensor]]  # summed terms by name, and the number of elements they are over


class Sums(NamedTuple):
    """What one loss comes to in a batch, summed over the elements that count."""

    total: Tensor  # of its weighted terms
    terms: dict[str, Tensor]  # unweighted, by name
    size: Size  # the resolution of the elements; None: images


class LossParts:
    """Computes every member of a loss; those on features listen to the models from `listen` on.

    Args:
        loss: the loss, one or several.
        record: takes the logits that gdkd or gdkd3 is computed of.
    """

    def __init__(self, loss: DistillationLoss | None, record: GradientRecord | None = None) -> None:
        self._record = record
        self.members = {} if loss is None else loss.members
        self._parts: dict[str, Parts] = {name: member.parts for name, member in self.members.items()}
        self._on_features = {name: each for name, each in self.members.items() if isinstance(each, FeatureLoss)}
        self._listening: dict[str, FeatureDistillation] = {}

    def compile(self, **options: Any) -> None:
        """Compile the losses on logits; options as `torch.compile`'s."""
        for name in self.members.keys() - self._on_features.keys():
            self._parts[name] = torch.compile(self._parts[name], **options)

    def listen(self, trainer: Trainer, teacher: Teacher | object) -> list[nn.Module]:
        """Prepare the losses on features for a trainer's student and data set, once; returns what they learn."""
        for name, loss in self._on_features.items():
            if name not in self._listening:
                self._listening[name] = FeatureDistillation.of_trainer(loss, trainer, teacher)
                self._parts[name] = self._listening[name].parts
        return list(self._on_features.values())

    @property
    def reads_features(self) -> bool:
        """Whether a loss is on features, which are those of the models' last forward passes."""
        return bool(self._on_features)

    @property
    def deaf(self) -> bool:
        """Whether a loss on features still waits for `listen`."""
        return len(self._listening) < len(self._on_features)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """While this is open, the forward passes of both models leave what `sums` needs."""
        with ExitStack() as stack:
            for each in self._listening.values():
                stack.enter_context(each.collecting())
            yield

    def taps(self) -> dict[str, Taps]:
        """What each loss on features read of the student in `sums`, which is then let go."""
        return {name: each.student.take_taps() for name, each in self._listening.items()}

    def sums(self, student: Tensor, teacher: Tensor, labels: Tensor | None, **options: Any) -> dict[str, Sums]:
        """Every loss's sums in a batch; options and errors as those of `summed_terms`."""
        found = {}
        for name, loss in self.members.items():
            terms, size = summed_terms(loss, self._parts[name], student, teacher, labels, **options)
            found[name] = Sums(loss.weigh(terms), terms, size)
            if self._record is not None and has_gradients(loss):
                self._record.add(loss, student, teacher, labels)
        return found


def logged(loss: str, sums: Mapping[str, Sums], weights: Mapping[str, float], step: StepSize, own: StepSize) -> Terms:
    """What is logged of a distillation loss: `kd`, the whole of it, and every term by name.

    Args:
        loss: its name.
        sums: of every member in this micro-batch.
        weights: of every member.
        step: the size of the optimizer step.
        own: the size of this micro-batch.
    """
    first, total = next(iter(sums.values())).size, 0
    terms: Terms = []
    for name, (value, parts, size) in sums.items():
        weight = weights[name]
        if size != first:  # over pixels of another resolution: `kd` is over those of the first
            weight = weight * step.divisor(first) / step.divisor(size)
        total = total + value * weight
        if name:
            terms.append(({f"{name}/{part}": term for part, term in parts.items()}, own.labels(size)))
    if len(sums) == 1 and "" in sums and list(parts) != ["kd"]:
        named = {f"{loss}_kd" if part == "kd" else part: term for part, term in parts.items()}
        return [({"kd": total} | named, own.labels(first))]
    return [({"kd": total}, own.labels(first)), *terms]
