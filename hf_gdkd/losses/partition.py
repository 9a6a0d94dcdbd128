"""Partitions of the classes, sample by sample: index tensors [..., n_g] of mutually exclusive groups.

A partition is written without its last group, which is every class that the others leave. Logits may have their classes
in any dimension `dim`; the groups have theirs last.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError

Groups = tuple[Tensor, ...]
MOST_K = 20  # up to which the mass of the top k is looked at


def top_k(logits: Tensor, k: int, *, strategy: str = "best", dim: int = -1) -> Groups:
    """Group the k largest logits [..., C] of each sample, best first; "worst": the k smallest.

    Examples:
        >>> top_k(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), 2)
        (tensor([[1, 3]]),)
    """
    logits = logits.movedim(dim, -1)
    if strategy == "worst":
        logits = -logits
    if logits.device.type != "cpu":
        return (logits.topk(k, dim=-1).indices,)
    classes = logits.shape[-1]
    if torch.compiler.is_compiling() and k <= 8:
        return (_picked_in_chunks(logits, k),)
    # On a CPU torch.topk is slow: over many classes it has a fast path from 64 * k on. The k largest lie in the k
    # chunks with the largest maxima or in the tail that fills no chunk. Chunk j holds the classes j, j + chunks,
    # j + 2 * chunks ...
    size = classes // (64 * k)
    if size < 8:
        return (logits.topk(k, dim=-1).indices,)
    chunks = classes // size
    largest = logits[..., : chunks * size].unflatten(-1, (size, chunks)).amax(-2)
    inside = largest.topk(k, dim=-1).indices.unsqueeze(-1) + chunks * torch.arange(size)
    tail = torch.arange(chunks * size, classes).expand(*logits.shape[:-1], -1)
    candidates = torch.cat((inside.flatten(-2), tail), -1)
    return (candidates.gather(-1, logits.gather(-1, candidates).topk(k, dim=-1).indices),)


def _picked_in_chunks(logits: Tensor, k: int) -> Tensor:
    """As the indices of topk, for compiled code on a CPU, which has to stop for topk.

    Chunks are of neighbouring classes, as many as a vector register or four hold, and candidates lie along the first
    dimension, so that picking is over samples or pixels side by side.
    """
    classes = logits.shape[-1]
    lead = [1] * (logits.ndim - 1)
    by_class = logits.movedim(-1, 0)
    if classes < 160:
        place = torch.arange(classes, dtype=torch.float32).view(-1, *lead)
        return _picked(by_class, place, classes - 1, k).long().movedim(0, -1)
    size = 16 if classes < 4096 else 64
    chunks = classes // size
    largest = logits[..., : chunks * size].unflatten(-1, (chunks, size)).amax(-1).movedim(-1, 0)
    place = torch.arange(chunks, dtype=torch.float32).view(-1, *lead)
    picks = _picked(largest, place, chunks - 1, k).long().unsqueeze(1)
    inside = (size * picks + torch.arange(size).view(-1, *lead)).flatten(0, 1)
    tail = torch.arange(chunks * size, classes).view(-1, *lead).expand(-1, *logits.shape[:-1])
    candidates = torch.cat((inside, tail))
    return _picked(by_class.gather(0, candidates), candidates.float(), classes - 1, k).long().movedim(0, -1)


def _picked(values: Tensor, place: Tensor, last: int, k: int) -> Tensor:
    """The places of the k largest values along the first dimension, one after the other; of equals the first."""
    values = values.clamp(min=torch.finfo(values.dtype).min)  # minus infinity: taken
    picks = []
    for _ in range(k):
        largest = values.amax(0, keepdim=True)
        picks.append(torch.where(values == largest, place, last).amin(0, keepdim=True))
        values = torch.where(place == picks[-1], -math.inf, values)
    return torch.cat(picks)


def first(logits: Tensor, k: Tensor, *, strategy: str = "best", dim: int = -1) -> Tensor:
    """Mark each sample's own number k [...] of largest logits [..., C]: a mask [..., C]; "worst": of smallest."""
    logits = logits.movedim(dim, -1)
    order = logits.argsort(-1, descending=strategy == "best")
    taken = torch.arange(logits.shape[-1], device=logits.device) < k.unsqueeze(-1)
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, taken)


def adaptive_k(logits: Tensor, threshold: float, *, dim: int = -1) -> Tensor:
    """Count the classes that stand out from those below them: k [...], 1 <= k <= C-1, of logits [..., C] over T.

    They begin with the least probable class whose probability is at least `threshold` (> 1) times the mean of its
    own and of all smaller ones. Where there is none, k is 1.
    """
    logits = logits.movedim(dim, -1)
    ascending = logits.sort(-1).values
    count = torch.arange(1, logits.shape[-1] + 1, dtype=logits.dtype, device=logits.device)
    stands_out = ascending - (ascending.logcumsumexp(-1) - count.log()) >= math.log(threshold)
    k = logits.shape[-1] - stands_out.int().argmax(-1)
    return k.where(stands_out.any(-1), 1)


def top1_top_k(logits: Tensor, k: int, *, dim: int = -1) -> Groups:
    """Make two groups: {top-1} and {top-2 .. top-k}; for k = 1 only the first."""
    (index,) = top_k(logits, k, dim=dim)
    return (index[..., :1], index[..., 1:]) if k > 1 else (index,)


def target(labels: Tensor | None, logits: Tensor, *, dim: int = -1) -> Groups:
    """Group by itself the label [...] of each sample of logits [..., C].

    Raises:
        InputError: labels are missing, of the wrong shape or dtype, or out of range. The range is read only
            on the CPU, where that is free, and outside of vmap and compiled code; elsewhere PyTorch's own device
            assertion stops the run.
    """
    logits = logits.movedim(dim, -1)
    num_classes = logits.shape[-1]
    if labels is None:
        raise InputError(
            "labels are missing: pass one per sample, or choose a loss that needs none, such as gdkd (or dkd with "
            'partition="top1").'
        )
    if labels.shape == logits.shape and labels.is_floating_point():
        raise InputError(
            "labels are soft (mixup, CutMix), and a mixed image has not the one label that this loss goes by: use gdkd "
            'with one k, or dkd with partition="top1".'
        )
    if labels.shape != logits.shape[:-1] or labels.is_floating_point():
        raise InputError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}: expected class indices of shape "
            f"{tuple(logits.shape[:-1])}."
        )
    batched = torch._C._functorch.is_batchedtensor(labels)  # by vmap: its numbers cannot be read
    if labels.device.type == "cpu" and not batched and not torch.compiler.is_compiling():
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if wrong.numel():
            raise InputError(
                f"a label is {wrong.view(-1)[0].item()}: expected 0 .. {num_classes - 1}; drop ignored "
                "positions before the loss."
            )
    return (labels.long().unsqueeze(-1),)


def sets(classes: Sequence[Sequence[int]], logits: Tensor, *, dim: int = -1) -> Groups:
    """Make the same groups of class indices for every sample of logits [..., C].

    Raises:
        InputError: see `check_groups`.
    """
    logits = logits.movedim(dim, -1)
    groups = tuple(torch.tensor(list(group), dtype=torch.long, device=logits.device) for group in classes)
    check_groups(groups, logits.shape[-1])
    return tuple(group.expand(*logits.shape[:-1], -1) for group in groups)


def check_groups(groups: Sequence[Tensor], num_classes: int) -> None:
    """Raise InputError unless groups [..., n_g] are non-empty, in range and exclusive, and leave a class.

    It reads the indices: on an accelerator this waits for the device.
    """
    if not groups or any(group.shape[-1] == 0 for group in groups):
        raise InputError("a group of classes is empty: every group needs at least one class.")
    index = torch.cat([g.expand(*torch.broadcast_shapes(*(h.shape[:-1] for h in groups)), -1) for g in groups], -1)
    if index.shape[-1] >= num_classes:
        raise InputError(
            f"the groups hold {index.shape[-1]} of {num_classes} classes: leave at least one, the last group "
            "is every other class."
        )
    if ((index < 0) | (index >= num_classes)).any():
        raise InputError(f"a group holds a class outside 0 .. {num_classes - 1}.")
    if (index.sort(-1).values.diff(dim=-1) == 0).any():
        raise InputError("a class is in two groups, or twice in one: groups must be mutually exclusive.")


def top_mass(logits: Tensor, most: int) -> Tensor:
    """The probability of the k largest classes together, for k = 1 to `most`: [..., most] of logits [..., C].

    Examples:
        >>> top_mass(torch.tensor([0.5, 0.2, 0.3]).log(), 2)
        tensor([0.5000, 0.8000])
    """
    return (logits.topk(most, dim=-1).values - logits.logsumexp(-1, keepdim=True)).exp().cumsum(-1)


def knee(mass: Sequence[float]) -> int:
    """The k at which a curve of masses, for k = 1, 2, ..., is highest above the line from its start to its end.

    Examples:
        >>> knee([0.5, 0.7, 0.9, 0.91, 0.92])
        3
    """
    values = torch.tensor(mass, dtype=torch.float64)
    line = values[0] + (values[-1] - values[0]) * torch.arange(len(values)) / max(len(values) - 1, 1)
    return int((values - line).argmax()) + 1
