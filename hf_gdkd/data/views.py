"""One crop a sample, seen by student and teacher each as its own image processor says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Self

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as TF
from transformers import BaseImageProcessor
from transformers.image_processing_backends import TorchvisionBackend

from ..errors import InputError
from ..models.load_errors import explained
from .decoding import ELONGATED, to_rgb
from .opened import Picture


class View:
    """How one model sees an image, as its own image processor says: size, interpolation, mean and std.

    `exact(images)` is the processor itself, with its own resizing and centre crop: what evaluation uses.
    `squash(crops)` resizes each crop to the model's input size, for training: nothing of the crop is cut off.

    Args:
        processor: an image processor of transformers, or timm's wrapper.
    """

    def __init__(self, processor: BaseImageProcessor) -> None:
        self.processor = processor
        with explained(f"the image processor {type(processor).__name__} cannot be used", "preprocessor_config.json"):
            self._inspect(processor)

    def _inspect(self, processor: BaseImageProcessor) -> None:
        self.resizes = True  # any image will do for what follows
        if hasattr(processor, "data_config"):  # timm resizes PIL images, transformers tensors
            self.on_pil = True
            self.interpolation = InterpolationMode(processor.data_config["interpolation"])
            resizes = True
        else:
            self.on_pil = not isinstance(processor, TorchvisionBackend)
            resample = PILImage.Resampling.BILINEAR if processor.resample is None else processor.resample
            self.interpolation = InterpolationMode(PILImage.Resampling(resample).name.lower())
            resizes = processor.do_resize or processor.do_center_crop
        height, width = self._inspect_colours()
        wide = self.exact([PILImage.new("RGB", (640, 512))]).shape[2:]
        if wide != (height, width) if resizes else None in (processor.size.height, processor.size.width):
            raise InputError(
                f"{type(processor).__name__} gives images of different shapes different sizes ({height} x {width} and "
                f"{wide[0]} x {wide[1]}): set size to a height and a width in preprocessor_config.json, or "
                "do_center_crop to true with a crop_size."
            )
        self.size = (height, width) if resizes else (processor.size.height, processor.size.width)
        self.resizes = bool(resizes)

    def _inspect_colours(self) -> tuple[int, int]:
        """Find mean, std and channels; returns (height, width) of what the processor makes of a square image."""
        # What the processor does to one colour: pixel = (value[channels] - mean) / std, of values from 0 to 255.
        colours, kind = ((0, 0, 0), (255, 255, 255), (0, 100, 200)), type(self.processor).__name__
        pixels = self.exact([PILImage.new("RGB", (512, 512), colour) for colour in colours])
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise InputError(
                f"{kind} makes arrays of shape {tuple(pixels.shape[1:])}, expected (3, height, "
                "width): choose a model that takes whole images of one size."
            )
        height, width = pixels.shape[2:]
        black, white, colour = pixels[:, :, height // 2, width // 2]
        self.std = 255 / (white - black)
        self.mean = -black * self.std
        if not (self.std.isfinite() & self.mean.isfinite()).all():
            raise InputError(
                f"{type(self.processor).__name__} does not give finite pixel values: correct its image_std."
            )
        self.channels = ((colour * self.std + self.mean) / 100).round().int().tolist()
        return height, width

    def exact(self, images: Sequence[PILImage.Image]) -> Tensor:
        """Pixel values (N, 3, H, W) of the image processor run alone.

        Raises:
            InputError: the processor resizes nothing, and an image does not have the model's input size.
        """
        other = next((image for image in images if image.size != self.size[::-1]), None) if not self.resizes else None
        if other is not None:
            raise InputError(
                f"{type(self.processor).__name__} has do_resize false, and an image has {other.height} x {other.width} "
                f"pixels, expected {self.size[0]} x {self.size[1]}: set do_resize to true in preprocessor_config.json."
            )
        if any(max(image.size) > ELONGATED * min(image.size) for image in images) and self._crops():
            images = [_middle(image) for image in images]
        return self.processor(list(images), return_tensors="pt")["pixel_values"].float()

    def _crops(self) -> bool:
        """Whether the processor cuts the middle out of a long image, and does not squeeze it into a square."""
        image = PILImage.new("RGB", (1536, 512))
        image.paste((255, 255, 255), (512, 0, 1024, 512))
        pixels = self.processor([image], return_tensors="pt")["pixel_values"]
        row = pixels[0, 0, pixels.shape[2] // 2]
        return bool((row[len(row) // 8] - row[len(row) // 2]).abs() < 0.1 * (row.max() - row.min()).clamp(min=0.1))

    def squash(self, crops: Sequence[PILImage.Image]) -> Tensor:
        """Pixel values (N, 3, H, W) of crops that are resized to the input size, whatever their shape."""
        return self.normalize(self.resize(crops))

    def resize(self, crops: Sequence[PILImage.Image]) -> Tensor:
        """As `squash`, before mean and std: (N, 3, H, W), uint8."""
        if not self.on_pil and len({crop.size for crop in crops}) == 1:  # all at once, which is faster
            pixels = self._resize(torch.stack([TF.pil_to_tensor(crop) for crop in crops]))
        else:
            pixels = torch.stack([self._resize_one(crop) for crop in crops])
        if self.channels != [0, 1, 2]:
            pixels = pixels[:, self.channels]
        return pixels

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixel values of what `resize` made (N, 3, H, W), on its device: the same on any."""
        mean, std = (each.to(pixels.device, non_blocking=True).view(3, 1, 1) for each in (self.mean, self.std))
        return pixels.float().sub_(mean).div_(std)

    def colours(self, pixels: Tensor) -> np.ndarray:
        """The picture (H, W, 3; RGB, 0 to 1) of pixel values (3, H, W)."""
        values = (pixels * self.std.view(3, 1, 1) + self.mean.view(3, 1, 1)) / 255
        return values[torch.tensor(self.channels).argsort()].permute(1, 2, 0).clamp(0, 1).numpy()

    def _resize_one(self, crop: PILImage.Image) -> Tensor:
        return TF.pil_to_tensor(self._resize(crop)) if self.on_pil else self._resize(TF.pil_to_tensor(crop))

    def _resize(self, image: PILImage.Image | Tensor) -> PILImage.Image | Tensor:
        return TF.resize(image, list(self.size), self.interpolation, antialias=True)

    def same_geometry(self, other: View) -> bool:
        """Whether the views differ in mean and std at most."""
        return all(getattr(self, a) == getattr(other, a) for a in ("size", "interpolation", "on_pil", "channels"))

    def same_normalization(self, other: View) -> bool:
        """Whether mean and std are the same."""
        return torch.allclose(self.mean, other.mean, atol=1e-3) and torch.allclose(self.std, other.std)

    def renormalize_to(self, other: View) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (3,): other's pixels = own pixels * scale + shift."""
        return self.std / other.std, (self.mean - other.mean) / other.std


def _middle(image: PILImage.Image) -> PILImage.Image:
    """The middle of a long image, which is all that a crop of its short side shows: resizing all takes gigabytes."""
    short = min(image.size)
    width, height = (min(side, ELONGATED * short) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def normalized(batch: Mapping[str, Tensor], views: Mapping[str, View]) -> dict[str, Tensor]:
    """A batch of a data set that was `unnormalized`, with the pixel values that each view would have made of it."""
    raw = [key for key in views if key in batch and batch[key].dtype == torch.uint8]
    return {**batch, **{key: views[key].normalize(batch[key]) for key in raw}}


def _unchanged(crop: PILImage.Image) -> PILImage.Image:
    return crop


class Views:
    """What a transform makes of crops: the student's view of them in `pixel_values`, and those of teachers that differ.

    Args:
        student: the student's view.
        teachers: further views, by their key in the batch, such as `teacher_pixel_values`.
    """

    def __init__(self, student: View, teachers: Mapping[str, View] | None = None) -> None:
        self.views = {"pixel_values": student, **(teachers or {})}
        self.normalizes = True

    def unnormalized(self) -> Self:
        """The same without mean and std, which `normalized` is left to apply, on the device: a quarter of the bytes."""
        other = copy.copy(self)
        other.normalizes = False
        return other

    def see(self, crops: Sequence[PILImage.Image], without: Collection[str] = ()) -> dict[str, Tensor]:
        """Every view of the crops, by its key in the batch; those that nobody needs are left out."""
        seen: dict[str, Tensor] = {}
        for name, view in self.views.items():
            if name not in without:
                alike = next((other for other in seen if self.views[other].same_geometry(view)), None)
                seen[name] = view.resize(crops) if alike is None else seen[alike]
        return {
            name: self.views[name].normalize(pixels) if self.normalizes else pixels for name, pixels in seen.items()
        }


class TrainTransform(Views):
    """One random crop and flip a sample, then the student's view of it and those of teachers that differ.

    Args:
        student: the student's view, in `pixel_values`.
        teachers: further views, by their key in the batch, such as `teacher_pixel_values`.
        crop_scale: smallest share of the image's area that a crop keeps; 1 keeps the whole image.
        crop_padding: pixels of black around the image, from which a crop of the image's own size is cut; where it
            is above 0, crop_scale has no part in it.
        flip: flip half of the images from left to right.
        augment: what is done to the crop before the views are made.
        exact_decoding: decode every image at full size; otherwise a JPEG is decoded at a half, a quarter or an eighth
            of it where a crop then still has 512 pixels a side, or 1024 where an input size is above 256. On
            photographs that changes the pixel values by 0.4 of 255 in the mean (0.9 in a very detailed one) and by 12
            at most, and moves the crop's edges by half a pixel of the reduced image at most.
    """

    def __init__(
        self,
        student: View,
        teachers: Mapping[str, View] | None = None,
        *,
        crop_scale: float = 0.08,
        crop_padding: int = 0,
        flip: bool = True,
        augment: Callable[[PILImage.Image], PILImage.Image] = _unchanged,
        exact_decoding: bool = False,
    ) -> None:
        super().__init__(student, teachers)
        self.scale, self.padding, self.flip, self.augment = (crop_scale, 1.0), crop_padding, flip, augment
        self.least = None if exact_decoding else decoded_side(self.views.values())

    def crop(self, image: PILImage.Image | Picture) -> PILImage.Image:
        """The crop, at the image's own resolution or that of its decoding, so that each view resizes once."""
        picture = image if isinstance(image, Picture) else Picture(image)
        width, height = picture.size
        if self.padding:
            top, left = (torch.randint(2 * self.padding + 1, (2,)) - self.padding).tolist()
            crop = TF.crop(picture.decoded(), top, left, height, width)  # Pillow fills with black what is outside
        else:
            sized = torch.empty(3, height, width, device="meta")
            box = RandomResizedCrop.get_params(sized, self.scale, (3 / 4, 4 / 3))
            crop = picture.crop(*box, least=self.least)
        return self.augment(TF.horizontal_flip(crop) if self.flip and torch.rand(()) < 0.5 else crop)

    def draw(self, sample: Mapping[str, object]) -> dict[str, object]:
        """The sample with its image cropped."""
        return {**sample, "image": self.crop(sample["image"])}

    def __call__(self, batch: dict[str, list]) -> dict[str, object]:
        views = self.see([self.crop(image) for image in batch["image"]])
        return views | {key: batch[key] for key in ("labels",) if key in batch}


def decoded_side(views: Iterable[View]) -> int | None:
    """The pixels a side that a crop must keep of a JPEG that is decoded at reduced size: over twice the largest input.

    None where the models take more than 512 pixels: then every image is decoded at full size. There are two steps, so
    that what a teacher sees, and its cache holds, depends on the other models as little as possible.
    """
    largest = max(max(view.size) for view in views)
    return next((side for side in (512, 1024) if side >= 2 * largest), None)


class EvalTransform:
    """The image as the model's own image processor makes it."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __call__(self, batch: dict[str, list]) -> dict[str, object]:
        pixels = {"pixel_values": self.view.exact([to_rgb(image) for image in batch["image"]])}
        return pixels | {key: batch[key] for key in ("labels",) if key in batch}
