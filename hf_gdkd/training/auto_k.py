"""`--k auto`: the number of classes in the top group, from what the teacher says of training images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import Trainer
from transformers.trainer_utils import has_length

from ..errors import InputError
from ..losses.partition import MOST_K, knee, top_mass
from .loss_options import as_dict, as_words, automatic_k
from .stopped_step import random_state, set_random_state

IMAGES = 1000
PIXELS = 256  # of each label map


def find_k(trainer: Trainer) -> list[str]:
    """Put a number in the place of every automatic k in a trainer's arguments; returns what was seen, a line each.

    The number is the knee of the mass of the top k: of the mean probability, at temperature 1, that the teacher gives
    its k largest classes. It is over 1,000 training images, augmented as in the first epoch; `hf-gdkd analyze` shows
    the same curve.

    Raises:
        InputError: no training data, or a loss whose groups are not the largest classes.
    """
    args, options = trainer.args, trainer.args.set_loss_options()
    names, notes = automatic_k(options), []
    members = args.build_loss().members
    takers = {name: [members[owner]] if (owner := name.rpartition(".")[0]) in members else [] for name in names}
    takers = {name: each or list(members.values()) for name, each in takers.items()}
    for name, losses in takers.items():
        if any(getattr(each, "strategy", "best") == "worst" for each in losses):
            raise InputError(f"{name} is auto, which is for the teacher's best classes: use a number with worst.")
    if trainer.train_dataset is None:
        raise InputError(f"{names[0]} is auto, which training images are needed for: pass train_dataset, or a number.")
    mass, images = mean_top_mass(trainer)
    for name, losses in takers.items():
        k = max(knee(mass), *(getattr(each, "smallest_k", 1) for each in losses))
        if name == "k" and args.k == "auto":
            args.k = k
        else:
            args.loss_options = as_words(as_dict(args.loss_options) | {name: k})
        notes.append(
            f"{name} auto is {k}: in {images:,} training images the teacher gives its largest class "
            f"{100 * mass[0]:.1f} % of the probability, its {knee(mass)} largest {100 * mass[knee(mass) - 1]:.1f} %, "
            f"and from there on the curve up to k = {len(mass)} flattens."
        )
    args.auto_notes += notes
    return notes


@torch.no_grad()
def mean_top_mass(trainer: Trainer) -> tuple[list[float], int]:
    """The teacher's mean probability of its k largest classes, for k = 1, 2, ..., and the number of images.

    Every process takes its share of the images; the training's random numbers stay as they are.

    Raises:
        InputError: logits that are not finite.
    """
    device, state = trainer.args.device, random_state(trainer.args.device)
    total = torch.zeros(MOST_K + 2, dtype=torch.float64)
    for batch, own in _batches(trainer):
        batch = trainer._prepare_inputs(batch)
        with trainer._autocast():
            logits = trainer.teacher(batch)[:own]
        if logits.ndim > 2:  # of pixels
            every = logits.flatten(2)
            logits = every[..., :: math.ceil(every.shape[2] / PIXELS)].movedim(1, 2).flatten(0, 1)
        most = min(MOST_K, logits.shape[1] - 1)
        total[:most] += top_mass(logits.float(), most).sum(0).cpu()
        total[-2:] += torch.tensor([len(logits), own])
    set_random_state(device, state)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total := total.to(device))
    mass = (total[:most] / total[-2]).tolist()
    if not all(map(math.isfinite, mass)):
        raise InputError("the teacher's logits are NaN or infinite for some images: check its weights.")
    return mass, int(total[-1])


def _batches(trainer: Trainer) -> Iterator[tuple[Mapping[str, Tensor], int]]:
    """Batches of this process's share of the images, and how many of each count; as many on every process."""
    rows, args = trainer.train_dataset, trainer.args
    size, count = args.per_device_train_batch_size, args.world_size
    if not has_length(rows):  # a stream, of which every process reads its own part
        samples = list(islice(iter(rows), math.ceil(IMAGES / count)))
        yield from (
            (trainer.data_collator(part), len(part))
            for part in (samples[i : i + size] for i in range(0, len(samples), size))
        )
        return
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:IMAGES].sort().values.tolist()
    each = math.ceil(len(drawn) / count)
    own = drawn[args.process_index :: count]
    padded = own + drawn[: each - len(own)]  # so that no process waits for a sharded teacher
    loader = DataLoader(Subset(rows, padded), size, collate_fn=trainer.data_collator)
    for i, batch in enumerate(loader):
        yield batch, max(0, min(size, len(own) - i * size))
