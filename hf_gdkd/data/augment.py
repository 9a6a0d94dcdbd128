"""Augmentations beyond crop and flip, on the image itself, before any view of it is made: all models see the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image as PILImage
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

AUTO_AUGMENT = {
    "randaugment": v2.RandAugment,
    "cifar10": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
    "imagenet": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET),
}
GREY = (124, 116, 104)  # ImageNet's mean: about 0 once normalised


def image_augmentation(
    auto_augment: str | None = None, random_erasing: float = 0.0, cutout: int = 0
) -> Callable[[PILImage.Image], PILImage.Image]:
    """RandAugment (two operations of magnitude 9) or an AutoAugment policy, by torchvision; then erasing and cutout.

    Args:
        auto_augment: "randaugment", "cifar10" or "imagenet" (the policies of AutoAugment); None: neither.
        random_erasing: probability that a rectangle of 2 to 33 % of the image turns grey.
        cutout: side of a square, in pixels, that turns grey around a random place (DeVries and Taylor, arXiv
            1708.04552); 0: none.
    """
    steps = [AUTO_AUGMENT[auto_augment]()] if auto_augment else []
    if random_erasing:
        steps.append(v2.RandomErasing(random_erasing, value=GREY))
    if cutout:
        steps.append(_Cutout(cutout))
    return v2.Compose(steps) if steps else v2.Identity()


class _Cutout:
    """Greys the part of a square that lies in the image; its centre may be anywhere in it."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, image: PILImage.Image) -> PILImage.Image:
        centre = [int(torch.randint(size, ())) for size in (image.height, image.width)]
        top, left = (max(place - self.side // 2, 0) for place in centre)
        bottom, right = (place - self.side // 2 + self.side for place in centre)
        grey = torch.tensor(GREY, dtype=torch.uint8).view(3, 1, 1)
        return TF.erase(image, top, left, bottom - top, right - left, grey)


class Mix:
    """Mixes two samples into one with a soft label: mixup, CutMix, or one of them at random where both are asked for.

    Args:
        num_labels: number of classes C.
        size: (height, width) of the mixed image.
        mixup_alpha, cutmix_alpha: of the Beta distribution of the share; 0: not at all.

    Reference:
        Zhang et al., "mixup", arXiv 1710.09412; Yun et al., "CutMix", arXiv 1905.04899; torchvision's implementation.
    """

    def __init__(
        self, num_labels: int, size: tuple[int, int], *, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0
    ) -> None:
        self.size = list(size)
        kinds = ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
        self.kinds = [kind(alpha=alpha, num_classes=num_labels) for kind, alpha in kinds if alpha > 0]

    def __call__(self, images: Sequence[PILImage.Image], labels: Sequence[int]) -> tuple[PILImage.Image, Tensor]:
        """The mixed image, and its label as shares of the classes, (C,)."""
        pixels = torch.stack([TF.pil_to_tensor(TF.resize(image, self.size, antialias=True)) for image in images])
        kind = self.kinds[int(torch.randint(len(self.kinds), ()))]
        pixels, shares = kind(pixels.float(), torch.tensor(labels))
        return TF.to_pil_image(pixels[0].round().byte()), shares[0]
