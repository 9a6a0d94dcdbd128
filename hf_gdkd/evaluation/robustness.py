"""How models do on images that are noisy, blurred, compressed or pale."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import partial

import torch
from datasets import Dataset
from PIL import Image as PILImage
from torchvision.transforms.v2 import functional as TF

from ..data.datasets import Viewed
from ..training.teacher import Teacher
from .passes import OwnViews, answers

# Strengths as in ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261); those of blur are for a side of 224 pixels.
CORRUPTIONS: dict[str, tuple[float, ...]] = {
    "noise": (0.08, 0.18, 0.38),  # standard deviation, of values from 0 to 1
    "blur": (2.0, 4.0, 6.0),  # standard deviation, pixels
    "JPEG": (25, 15, 7),  # quality
    "contrast": (0.4, 0.2, 0.05),  # factor
}


def corrupt(image: PILImage.Image, *, kind: str, strength: float) -> PILImage.Image:
    """A damaged copy of an RGB image, the same each time; `kind` and `strength` as in `CORRUPTIONS`."""
    pixels = TF.pil_to_tensor(image)
    if kind == "noise":
        g = torch.Generator().manual_seed(zlib.crc32(image.tobytes()))
        noisy = pixels / 255 + strength * torch.randn(pixels.shape, generator=g)
        pixels = (255 * noisy.clamp(0, 1)).round().to(torch.uint8)
    elif kind == "blur":
        sigma = strength * min(image.size) / 224
        radius = min(max(1, round(3 * sigma)), (min(image.size) - 1) // 2)  # the padding mirrors so much
        pixels = TF.gaussian_blur(pixels, [2 * radius + 1] * 2, [sigma] * 2) if radius > 0 else pixels
    elif kind == "JPEG":
        pixels = TF.jpeg(pixels, int(strength))
    else:
        pixels = TF.adjust_contrast(pixels, strength)
    return TF.to_pil_image(pixels)


def robustness(
    models: Mapping[str, Teacher], rows: Dataset, *, batch_size: int = 64, device: torch.device | str = "cpu"
) -> dict[str, dict[str, list[float]]]:
    """Measure models on damaged images: by kind and model, the share that is right, first of undamaged images.

    Without labels that is the share on which a model says what it says of the undamaged image.

    Args:
        models: by name, matched to the data set's classes.
        rows: samples with `image` and, if labelled, `labels`.
        batch_size, device: as in `answers`.
    """
    views = {name: model.view for name, model in models.items()}

    def predictions(change: Callable | None) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        samples, found, labels = Viewed(rows, OwnViews(views, change)), {name: [] for name in models}, []
        for each in answers(models, samples, batch_size=batch_size, device=device, shared=False):
            for name, logits in each.logits.items():
                found[name].append(logits.argmax(1))
            labels += [] if each.labels is None else [each.labels]
        return {name: torch.cat(parts) for name, parts in found.items()}, torch.cat(labels) if labels else None

    clean, labels = predictions(None)
    right = {name: clean[name] if labels is None else labels for name in models}
    share = lambda said, name: float((said == right[name]).double().mean())  # noqa: E731
    curves = {kind: {name: [share(clean[name], name)] for name in models} for kind in CORRUPTIONS}
    for kind, strengths in CORRUPTIONS.items():
        for strength in strengths:
            said, _ = predictions(partial(corrupt, kind=kind, strength=strength))
            for name in models:
                curves[kind][name].append(share(said[name], name))
    return curves
