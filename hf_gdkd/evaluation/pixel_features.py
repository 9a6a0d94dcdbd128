"""The features of single pixels that enter segmenters' heads, of a sample of the pixels that have a label."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..data.masks import IGNORE
from ..errors import InputError
from ..training.teacher import logits_of
from .segmentation_measurement import Seen, Segmenter, areas


@torch.no_grad()
def pixel_features(
    models: Mapping[str, Segmenter],
    rows: Dataset,
    *,
    most: int,
    window: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The features (N, D) of each model that enter its head at some labelled pixels, and their classes (N).

    Of each image equally many pixels are drawn, the same in every call, or all where it has fewer. Features are
    interpolated bilinearly, as logits are, and averaged over the windows.

    Args:
        models: segmenters by what messages call them.
        rows: samples with `image` and `labels` (the mask), no more than `most`.
        most: N at most.
        window: as in `measure_segmenters`.
        device: where to compute.

    Raises:
        InputError: a model without a convolution that gives its logits.
    """
    generator, seen = torch.Generator().manual_seed(0), Seen(rows, [each.view for each in models.values()])
    heads, found, classes = {}, {name: [] for name in models}, []
    for each in models.values():
        each.model.to(device).eval()
    for index in tqdm(range(len(rows)), desc="features", leave=False, disable=None):
        images, labels = seen[index]
        places = (labels != IGNORE).nonzero()
        places = places[torch.randperm(len(places), generator=generator)[: most // len(rows)]]
        shares = (places + 0.5).double() / torch.tensor(labels.shape)
        for (name, each), image in zip(models.items(), images, strict=True):
            parameter = next(each.model.parameters())
            pixels = image[None].to(parameter.device, parameter.dtype)
            if name not in heads:
                heads[name] = head_of(each.model, pixels[next(areas(pixels, window))], name)
            found[name].append(_features_at(shares, each.model, heads[name], pixels, window).cpu().numpy())
        classes.append(labels[places[:, 0], places[:, 1]])
    return {name: np.concatenate(parts) for name, parts in found.items()}, torch.cat(classes).numpy()


@torch.no_grad()
def head_of(model: nn.Module, pixels: Tensor, name: str = "model") -> nn.Conv2d:
    """The convolution whose output, resized bilinearly, is what a segmenter answers to images (N, 3, H, W).

    Raises:
        InputError: there is none.
    """
    logits, outputs = logits_of(model(pixels)).float(), {}
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.out_channels == logits.shape[1]:
                hook = module.register_forward_hook(lambda conv, args, output: outputs.update({conv: output.float()}))
                hooks.callback(hook.remove)
        model(pixels)
    for conv, output in reversed(outputs.items()):
        for corners in (False, True):
            resized = F.interpolate(output, logits.shape[2:], mode="bilinear", align_corners=corners)
            if (resized - logits).abs().max() <= 0.01 * logits.abs().max():  # rounding, in half precision
                return conv
    raise InputError(f"the {name} has no convolution that gives its logits: use another model.")


def _features_at(shares: Tensor, model: nn.Module, head: nn.Conv2d, pixels: Tensor, window: int | None) -> Tensor:
    """What enters the head (n, D) at places (n, 2) of one image, in shares of its height and width."""
    total, times, entering = 0, torch.zeros(len(shares), 1), []
    hook = head.register_forward_pre_hook(lambda conv, args: entering.append(args[0]))
    try:
        for area in areas(pixels, window):
            part = pixels[area]
            model(part)
            corner = torch.tensor([side.start for side in area[1:]])
            own = (shares * torch.tensor(pixels.shape[2:]) - corner) / torch.tensor(part.shape[2:])
            inside = ((own > 0) & (own < 1)).all(1, keepdim=True)
            features = entering.pop().float()
            grid = (2 * own - 1).flip(1)[None, None].to(features)  # (x, y), from -1 to 1
            values = F.grid_sample(features, grid, padding_mode="border", align_corners=False)[0, :, 0].T.cpu()
            total, times = total + values * inside, times + inside
    finally:
        hook.remove()
    return total / times
