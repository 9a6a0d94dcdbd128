"""The models and the data of the runs that the kill test kills."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    ViTConfig,
    ViTForImageClassification,
)

from hf_gdkd.data import Augmented, SegmentationEvalTransform, SegmentationTransform, SegmentationView, Viewed

CLASSES, SIZE, SAMPLES = 5, 8, 42  # 42 = 10 * 4 + 2: 11 micro-batches, 6 steps an epoch
SCENE = 40  # its side in pixels


def vit(seed: int, **options: float) -> ViTForImageClassification:
    torch.manual_seed(seed)
    return ViTForImageClassification(ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=SIZE,
        patch_size=4, num_labels=CLASSES, initializer_range=0.3, **options,
    ))  # fmt: skip


def rows(samples: int) -> list[dict[str, object]]:
    g = torch.Generator().manual_seed(samples)
    pixels = torch.randint(256, (samples, SIZE, SIZE, 3), dtype=torch.uint8, generator=g).numpy()
    return [{"image": Image.fromarray(p), "labels": i % CLASSES} for i, p in enumerate(pixels)]


def segmenters() -> tuple[SegformerForSemanticSegmentation, SegformerForSemanticSegmentation]:
    """Student, with dropout, and teacher."""
    sizes = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = SegformerConfig(num_labels=CLASSES, hidden_dropout_prob=0.2, initializer_range=0.2, **sizes)
        made.append(SegformerForSemanticSegmentation(config))
    return tuple(made)


def scenes(seed: int) -> dict[str, Augmented | Viewed]:
    """Images with masks, of which a third of the pixels has no class, scaled, cropped and flipped at random."""

    def rows(samples: int) -> list[dict[str, Image.Image]]:
        g = torch.Generator().manual_seed(samples)
        pixels = torch.randint(256, (samples, SCENE, SCENE, 3), dtype=torch.uint8, generator=g)
        masks = torch.randint(CLASSES, (samples, SCENE, SCENE), dtype=torch.uint8, generator=g)
        masks[torch.rand(masks.shape, generator=g) < 0.3] = 255
        pairs = zip(pixels.numpy(), masks.numpy(), strict=True)
        return [{"image": Image.fromarray(p), "labels": Image.fromarray(m)} for p, m in pairs]

    view = SegmentationView(SegformerImageProcessor(size={"height": 32, "width": 32}))
    return {
        "train_dataset": Augmented(rows(SAMPLES), SegmentationTransform(view), seed=seed),
        "eval_dataset": Viewed(rows(9), SegmentationEvalTransform(view)),
    }
