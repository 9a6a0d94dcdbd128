"""One scale, crop and flip of an image and its mask, seen by student and teacher each as its own processor says."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from transformers import BaseImageProcessor

from ..models.kinds import SEGMENTER, kind_of
from ..models.segmentation import takes_any_size
from .decoding import to_rgb
from .masks import IGNORE
from .views import View, Views

logger = logging.getLogger(__name__)

NEAREST, BILINEAR = PILImage.Resampling.NEAREST, PILImage.Resampling.BILINEAR


class SegmentationView(View):
    """How a model that segments sees an image, as its own image processor says: channels, mean and std, and size.

    `squash(crops)` normalises crops at the size that they have. `size` (height, width) is what the processor makes of a
    square image: the size that the model was made for, and the usual size of a crop. `exact(images)` is the processor
    itself, with its own resizing.

    Args:
        processor: an image processor of transformers, or timm's wrapper.
        fixed: the model takes images of `size` alone, so that crops are resized to it.

    Examples:
        >>> from PIL import Image
        >>> from transformers import SegformerImageProcessor
        >>> from hf_gdkd.data import SegmentationView
        >>> view = SegmentationView(SegformerImageProcessor(size={"height": 64, "width": 64}))
        >>> view.size, view.squash([Image.new("RGB", (40, 30))]).shape
        ((64, 64), torch.Size([1, 3, 30, 40]))
    """

    def __init__(self, processor: BaseImageProcessor, *, fixed: bool = False) -> None:
        self.fixed = fixed
        super().__init__(processor)

    def _inspect(self, processor: BaseImageProcessor) -> None:
        self.resizes, self.on_pil, self.interpolation = True, False, InterpolationMode.BILINEAR
        self.size = self._inspect_colours()

    def _resize(self, image: Tensor) -> Tensor:
        return super()._resize(image) if self.fixed else image

    def same_geometry(self, other: View) -> bool:
        """Whether the views of a crop differ in mean and std at most."""
        sizes = [view.size if getattr(view, "fixed", True) else None for view in (self, other)]
        return self.channels == other.channels and sizes[0] == sizes[1]

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """The mean as (red, green, blue), in whole numbers: about 0 once normalised."""
        return tuple(round(self.mean[self.channels.index(channel)].item()) for channel in range(3))


def view_of(processor: BaseImageProcessor, model: nn.Module) -> View:
    """How a model sees images, as its image processor says, and for a segmenter the model: its size alone, or any."""
    if kind_of(model) is not SEGMENTER:
        return View(processor)
    return SegmentationView(processor, fixed=not takes_any_size(model))


class SegmentationTransform(Views):
    """One random scale, crop and flip a sample, for the image and its mask, then each model's view of it.

    Where the scaled image is smaller than the crop, the rest, on the right and below, is the student's mean colour in
    the image and 255 in the mask.

    Args:
        student: the student's view, in `pixel_values`.
        teachers: further views, by their key in the batch, such as `teacher_pixel_values`.
        crop_size: (height, width) of the crop; None: the size that the student was made for.
        scale: smallest and largest factor that the image is resized by before it is cropped.
        flip: flip half of the images from left to right.

    Examples:
        >>> from PIL import Image
        >>> from transformers import SegformerImageProcessor
        >>> from hf_gdkd.data import Augmented, SegmentationTransform, SegmentationView
        >>> rows = [{"image": Image.new("RGB", (40, 30)), "labels": Image.new("L", (40, 30), 2)}]
        >>> view = SegmentationView(SegformerImageProcessor())
        >>> data = Augmented(rows, SegmentationTransform(view, crop_size=(32, 32)), seed=0)
        >>> data[0]["pixel_values"].shape, data[0]["labels"].shape, data[0]["labels"].unique().tolist()
        (torch.Size([3, 32, 32]), torch.Size([32, 32]), [2, 255])
    """

    def __init__(
        self,
        student: SegmentationView,
        teachers: Mapping[str, SegmentationView] | None = None,
        *,
        crop_size: tuple[int, int] | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: bool = True,
    ) -> None:
        super().__init__(student, teachers)
        self.size, self.scale, self.flip = tuple(crop_size or student.size), scale, flip
        self._told = torch.zeros((), dtype=torch.bool).share_memory_()  # by workers too

    def draw(self, sample: Mapping[str, object]) -> dict[str, object]:
        """The sample with its image and its mask (a tensor) cropped alike."""
        image = to_rgb(sample["image"] if isinstance(sample["image"], PILImage.Image) else sample["image"].decoded())
        if (image.height < self.size[0] or image.width < self.size[1]) and not self._told:
            self._told.fill_(True)
            crop = f"{self.size[0]} x {self.size[1]} (height x width)"
            logger.warning(
                f"The crop of {crop} is larger than an image of {image.height} x {image.width}: what is missing is "
                "padded, and left out of the loss. (Said once.)"
            )
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * torch.rand(()).item()
        scaled = [max(round(side * factor), 1) for side in (image.height, image.width)]
        height, width = (min(side, crop) for side, crop in zip(scaled, self.size, strict=True))
        top, left = (
            int(torch.randint(side - part + 1, ())) for side, part in zip(scaled, (height, width), strict=True)
        )
        y, x = image.height / scaled[0], image.width / scaled[1]
        box = left * x, top * y, min((left + width) * x, image.width), min((top + height) * y, image.height)
        flipped = self.flip and torch.rand(()).item() < 0.5

        def cut(picture: PILImage.Image, resample: PILImage.Resampling, fill: object) -> PILImage.Image:
            part = picture.resize((width, height), resample, box)
            if flipped:
                part = part.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
            if part.size == self.size[::-1]:
                return part
            whole = PILImage.new(picture.mode, self.size[::-1], fill)
            whole.paste(part)
            return whole

        cropped = {**sample, "image": cut(image, BILINEAR, self.views["pixel_values"].mean_colour)}
        if "labels" in sample:
            cropped["labels"] = as_classes(cut(sample["labels"], NEAREST, IGNORE))
        return cropped


class SegmentationEvalTransform:
    """Whole images, normalised at full size, and whole masks; a view of fixed size resizes the image alone."""

    def __init__(self, view: SegmentationView) -> None:
        self.view = view

    def __call__(self, batch: dict[str, list]) -> dict[str, object]:
        seen = {"pixel_values": [self.view.squash([to_rgb(image)])[0] for image in batch["image"]]}
        return seen | ({"labels": [as_classes(mask) for mask in batch["labels"]]} if "labels" in batch else {})


def as_classes(mask: PILImage.Image) -> Tensor:
    """A mask as a tensor of classes (H, W), int64."""
    return torch.from_numpy(np.array(mask, np.int64))
