"""Rows of a data set as samples for a model: augmented for training, or as they are for evaluation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset, Sampler, default_collate

from .augment import Mix
from .masks import IGNORE
from .opened import Opened, row_index
from .segmentation_views import SegmentationTransform
from .selection import ROW
from .teacher_cache import TeacherCache, logits_key
from .views import TrainTransform, Views


def draw_seed(*numbers: int) -> int:
    """A seed that depends on these numbers alone."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Augmented(Dataset):
    """Rows of a data set through a random transform: a view depends on seed, original row and view number alone.

    So a sample is augmented alike in any process, worker and micro-batch, after a resumption, and whatever other rows
    are selected. The original row is the number in the column `sample_id`, or the position where there is none; the
    view number is the epoch, or with `repeats` counts on: epoch * repeats + repetition; with `views` it starts again
    from 0 after as many. GDKDTrainer calls `set_epoch`.

    Args:
        rows: samples with `image` and, if labelled, `labels`.
        transform: what makes pixels of them.
        seed: of all random numbers.
        mix: mixes each sample with another, drawn at random from the whole data set; None: not at all.
        repeats: how often an image occurs in an epoch, with another augmentation each time; the epoch stays as long,
            and other images are left out of it (repeated augmentation: Hoffer et al., arXiv 1901.09335). Index
            i + len(data) is the second view of image i, and so on.
        views: how many views an image has; None: a new one each time.
        caches: the logits that teachers have for these views, by the key of each teacher's pixels in a batch. They
            come as `teacher_logits`; where a batch lacks some, with `teacher_logits_known`, `view` and the pixels.

    Examples:
        >>> from PIL import Image
        >>> from transformers import ViTImageProcessor
        >>> from hf_gdkd.data import Augmented, TrainTransform, View
        >>> rows = [{"image": Image.new("RGB", (20, 30)), "labels": i} for i in range(3)]
        >>> view = View(ViTImageProcessor(size={"height": 8, "width": 8}))
        >>> data = Augmented(rows, TrainTransform(view), seed=0)
        >>> data[-1]["pixel_values"].shape, data[-1]["labels"], data[-1]["sample_id"]
        (torch.Size([3, 8, 8]), 2, 2)
    """

    def __init__(
        self,
        rows: Sequence,
        transform: TrainTransform | SegmentationTransform,
        *,
        seed: int,
        mix: Mix | None = None,
        repeats: int = 1,
        views: int | None = None,
        caches: Mapping[str, TeacherCache] | None = None,
    ) -> None:
        self.rows, self.transform, self.seed, self.mix, self.repeats = Opened(rows), transform, seed, mix, repeats
        self.views, self.caches = views, caches or {}
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers that live on

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def unnormalized(self) -> Augmented:
        """The same samples with pixels of 8 bits, to which `views.normalized` applies mean and std."""
        other = copy.copy(self)
        if isinstance(self.transform, Views):
            other.transform = self.transform.unnormalized()
        return other

    def with_view(self, view: int, *, live: bool = False) -> Augmented:
        """The same rows in this view; `live`: without what caches hold, so with every teacher's pixels."""
        other = copy.copy(self)
        other.repeats, other.views, other._epoch = 1, None, torch.tensor(view)
        other.caches = {} if live else self.caches
        return other

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sampler(self) -> Sampler | None:
        """The order of an epoch where images are repeated; None: the trainer's own."""
        return _Repeated(self) if self.repeats > 1 else None

    def __iter__(self) -> Iterator[dict[str, object]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, object]:
        """A sample; negative indices count from the end of the rows.

        Raises:
            IndexError: no such row.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, object]]:
        with torch.random.fork_rng(devices=[]):
            last: dict[int, dict] = {}
            samples = [self._draw(index, last) for index in indices]
        columns, unneeded = self._cached(samples)
        columns |= self.transform.see([sample.pop("image") for sample in samples], without=unneeded)
        return [sample | {key: values[i] for key, values in columns.items()} for i, sample in enumerate(samples)]

    def _cached(self, samples: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Sequence], set[str]]:
        """The logits that are cached, by their key in a batch, and the keys of pixels that are then not needed."""
        columns, unneeded = {}, set()
        rows, views = [s[ROW] for s in samples], [s.pop("view", None) for s in samples]
        for pixels, cache in self.caches.items():
            logits, known = cache.read(rows, views)
            columns[logits_key(pixels)] = torch.from_numpy(logits)
            if known.all():
                unneeded.add(pixels)
            else:
                columns[f"{logits_key(pixels)}_known"] = torch.from_numpy(known)
                columns["view"] = views
        return columns, unneeded

    def _draw(self, index: int, last: dict[int, dict]) -> dict[str, object]:
        """The sample with its random crop, before any view is made of it.

        `last` holds the row before: where images are repeated, one after the other, each is decoded once.
        """
        rows = len(self.rows)
        repeat, row = divmod(row_index(index, rows) if index < 0 else row_index(index, rows * self.repeats), rows)
        if row not in last:
            last.clear()
            last[row] = self.rows.undecoded(row)
        stored = last[row]
        number = stored.get(ROW, row)
        view = int(self._epoch) * self.repeats + repeat
        view = view if self.views is None else view % self.views
        torch.random.default_generator.manual_seed(draw_seed(self.seed, number, view))
        sample = {key: stored[key] for key in ("image", "labels") if key in stored} | {ROW: number}
        if self.caches:
            sample["view"] = view
        if self.mix is None:
            return self.transform.draw(sample)
        crops = [self.transform.crop(sample["image"])]
        other = self.rows.undecoded(int(torch.randint(len(self.rows), ())))
        crops.append(self.transform.crop(other["image"]))
        sample["image"], label = self.mix(crops, [each.get("labels", 0) for each in (sample, other)])
        return sample | ({"labels": label} if "labels" in sample else {})


class _Repeated(Sampler):
    """Each drawn row `repeats` times one after the other, by another index and so with another augmentation."""

    def __init__(self, data: Augmented) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[int]:
        rows, repeats = len(self.data), self.data.repeats
        seed = draw_seed(self.data.seed, int(self.data._epoch))
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        drawn = order[: math.ceil(rows / repeats)].unsqueeze(-1) + rows * torch.arange(repeats)
        yield from drawn.flatten()[:rows].tolist()


class Viewed(Dataset):
    """Rows of a data set through a transform, a batch at a time."""

    def __init__(self, rows: Sequence, transform: Callable[[dict[str, list]], dict[str, object]]) -> None:
        self.rows, self.transform = Opened(rows), transform

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, object]]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> dict[str, object]:
        """A sample; negative indices count from the end.

        Raises:
            IndexError: no such row.
        """
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, object]]:
        samples = [self.rows[row] for row in rows]
        batch = self.transform({key: [sample[key] for sample in samples] for key in samples[0]})
        return [{key: values[i] for key, values in batch.items()} for i in range(len(rows))]


def collate(samples: Sequence[dict[str, object]]) -> dict[str, Tensor]:
    """Stack samples into a batch: pixel_values (N, 3, H, W), teacher_pixel_values, labels (N), (N, C) or (N, H, W).

    Whole images of different sizes are padded to the largest below and on the right: pixels with 0, masks with 255.
    """
    return {key: default_collate(_of_one_size(key, [torch.as_tensor(s[key]) for s in samples])) for key in samples[0]}


def _of_one_size(key: str, values: list[Tensor]) -> list[Tensor]:
    if len({value.shape for value in values}) == 1:
        return values
    height, width = (max(value.shape[side] for value in values) for side in (-2, -1))
    fill = IGNORE if key == "labels" else 0
    return [pad(value, (0, width - value.shape[-1], 0, height - value.shape[-2]), value=fill) for value in values]
