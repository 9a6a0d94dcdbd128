"""What a teacher cache holds, batch by batch, as a model would answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..data.teacher_cache import TeacherCache

PIECE = 512  # records read at a time


class Answers(NamedTuple):
    """Some images: their numbers in the data, logits (N, C) of each model by its key, and labels (N) if any."""

    rows: Sequence[int]
    logits: dict[str, Tensor]
    labels: Tensor | None


def cached_answers(cache: TeacherCache, rows: Sequence[int], labels: Tensor | None) -> Iterator[Answers]:
    """What a cache holds of the first view of these rows, with their labels; rows that are not recorded are left out.

    Processes share the rows.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for start in range(rank * PIECE, len(rows), processes * PIECE):
        numbers = list(rows[start : start + PIECE])
        logits, known = cache.read(numbers, [0] * len(numbers))
        intact = torch.from_numpy(known)
        own = None if labels is None else labels[start : start + PIECE][intact]
        places = (start + intact.nonzero().flatten()).tolist()
        yield Answers(places, {"teacher": torch.from_numpy(logits)[intact]}, own)
