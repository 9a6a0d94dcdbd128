"""Models over images in one pass, through views of their own: answers come batch by batch, and none is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Samples
from tqdm.auto import tqdm

from ..data.datasets import collate
from ..data.decoding import to_rgb
from ..data.views import View
from ..training.dataloader_workers import default_workers
from ..training.teacher import Teacher
from .cached_answers import Answers


class OwnViews:
    """Makes each model's view of an image, as its image processor says, by its key in the batch.

    Args:
        views: views by key.
        change: what is done to the image before.
    """

    def __init__(
        self, views: Mapping[str, View], change: Callable[[PILImage.Image], PILImage.Image] | None = None
    ) -> None:
        self.views, self.change, self.view = views, change, next(iter(views.values()))

    def __call__(self, batch: dict[str, list]) -> dict[str, Any]:
        images = [to_rgb(image) for image in batch["image"]]
        images = images if self.change is None else [self.change(image) for image in images]
        seen = {key: view.exact(images) for key, view in self.views.items()}
        return seen | {key: batch[key] for key in ("labels",) if key in batch}


@torch.no_grad()
def answers(
    models: Mapping[str, Teacher],
    samples: Samples,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    shared: bool = True,
) -> Iterator[Answers]:
    """What models answer to samples that have each model's pixels by its key.

    Args:
        models: models by key, matched to the data set's classes.
        samples: such as `Viewed(rows, OwnViews(...))`.
        batch_size: images in a forward pass.
        device: where to compute.
        shared: the processes of torch.distributed share the batches: each gets its own; False: each gets all.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if shared and dist.is_initialized() else (0, 1)
    batches = [range(i, min(i + batch_size, len(samples))) for i in range(0, len(samples), batch_size)][rank::processes]
    loader = DataLoader(
        samples, batch_sampler=batches, collate_fn=collate, num_workers=default_workers(samples),
        pin_memory=torch.device(device).type == "cuda",
    )  # fmt: skip
    for model in models.values():
        model.to(torch.device(device))
    progress = tqdm(loader, desc="analysing", leave=False, disable=rank > 0 or None)
    for rows, batch in zip(batches, progress, strict=True):
        logits = {key: model({"pixel_values": batch[key].to(device)}).float().cpu() for key, model in models.items()}
        yield Answers(rows, logits, batch.get("labels"))
