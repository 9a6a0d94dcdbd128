"""The means of the loss's terms since the last log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor


class LossLog:
    """Adds up the terms of every micro-batch on the device; their values are read only for a log.

    A term's mean is over the samples that it was computed for: the distillation terms are missing while their weight
    is 0.
    """

    def __init__(self) -> None:
        self._totals: dict[tuple[str, ...], tuple[Tensor, int | Tensor]] = {}

    def add(self, names: Sequence[str], sums: Tensor, samples: int | Tensor) -> None:
        """Take a micro-batch's terms [terms], by name, summed over its samples, and the number of these."""
        total, count = self._totals.get(tuple(names), (0, 0))
        self._totals[tuple(names)] = total + sums, count + samples

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes' samples since the last call; empty when there were none."""
        totals, counts = Counter(), Counter()
        for names, (sums, count) in self._totals.items():
            *values, samples = accelerator.reduce(
                torch.cat([sums, torch.as_tensor(count).to(sums).reshape(1)]), "sum"
            ).tolist()
            for name, value in zip(names, values, strict=True):
                totals[name] += value
                counts[name] += samples
        self._totals = {}
        return {name: total / max(counts[name], 1) for name, total in totals.items()}
