"""One crop a sample, seen by student and teacher each as its own image processor says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as TF
from transformers import BaseImageProcessor
from transformers.image_processing_backends import TorchvisionBackend

from ..errors import InputError
from .augment import Mix
from .decoding import Opened, to_rgb


class View:
    """How one model sees an image, as its own image processor says: size, interpolation, mean and std.

    `exact(images)` is the processor itself, with its own resizing and centre crop: what evaluation uses.
    `squash(crops)` resizes each crop to the model's input size, for training: nothing of the crop is cut off.

    Args:
        processor: an image processor of transformers, or timm's wrapper.
    """

    def __init__(self, processor: BaseImageProcessor) -> None:
        self.processor = processor
        if hasattr(processor, "data_config"):  # timm resizes PIL images, transformers tensors
            self.on_pil = True
            self.interpolation = InterpolationMode(processor.data_config["interpolation"])
        else:
            self.on_pil = not isinstance(processor, TorchvisionBackend)
            self.interpolation = InterpolationMode(PILImage.Resampling(processor.resample).name.lower())
        # What the processor does to one colour: pixel = (value[channels] - mean) / std, of values from 0 to 255.
        colours = (0, 0, 0), (255, 255, 255), (0, 100, 200)
        pixels = self.exact([PILImage.new("RGB", (512, 512), colour) for colour in colours])
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise InputError(
                f"{type(processor).__name__} makes arrays of shape {tuple(pixels.shape[1:])}, expected (3, height, "
                "width): choose a model that takes whole images of one size."
            )
        height, width = pixels.shape[2:]
        black, white, colour = pixels[:, :, height // 2, width // 2]
        self.std = 255 / (white - black)
        self.mean = -black * self.std
        self.channels = ((colour * self.std + self.mean) / 100).round().int().tolist()
        resizes = getattr(processor, "do_resize", True) or processor.do_center_crop
        self.size = (height, width) if resizes else (processor.size.height, processor.size.width)

    def exact(self, images: Sequence[PILImage.Image]) -> Tensor:
        """Pixel values (N, 3, H, W) of the image processor run alone."""
        return self.processor(list(images), return_tensors="pt")["pixel_values"].float()

    def squash(self, crops: Sequence[PILImage.Image]) -> Tensor:
        """Pixel values (N, 3, H, W) of crops that are resized to the input size, whatever their shape."""
        if not self.on_pil and len({crop.size for crop in crops}) == 1:  # all at once, which is faster
            pixels = self._resize(torch.stack([TF.pil_to_tensor(crop) for crop in crops]))
        else:
            pixels = torch.stack([self._resize_one(crop) for crop in crops])
        if self.channels != [0, 1, 2]:
            pixels = pixels[:, self.channels]
        return pixels.float().sub_(self.mean.view(3, 1, 1)).div_(self.std.view(3, 1, 1))

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


class TrainTransform:
    """One random crop and flip a sample, then the student's view of it and those of teachers that differ.

    Args:
        student: the student's view, in `pixel_values`.
        teachers: further views, by their key in the batch, such as `teacher_pixel_values`.
        crop_scale: smallest share of the image's area that a crop keeps; 1 keeps the whole image.
        crop_padding: pixels of black around the image, from which a crop of the image's own size is cut; where it
            is above 0, crop_scale has no part in it.
        flip: flip half of the images from left to right.
        augment: what is done to the crop before the views are made.
    """

    def __init__(
        self,
        student: View,
        teachers: Mapping[str, View] | None = None,
        *,
        crop_scale: float = 0.08,
        crop_padding: int = 0,
        flip: bool = True,
        augment: Callable[[PILImage.Image], PILImage.Image] = lambda crop: crop,
    ) -> None:
        self.views = {"pixel_values": student, **(teachers or {})}
        self.scale, self.padding, self.flip, self.augment = (crop_scale, 1.0), crop_padding, flip, augment

    def crop(self, image: PILImage.Image) -> PILImage.Image:
        """The crop, at the image's own resolution, so that each view resizes once."""
        image = to_rgb(image)
        if self.padding:
            top, left = (torch.randint(2 * self.padding + 1, (2,)) - self.padding).tolist()
            box = top, left, image.height, image.width  # Pillow fills with black what is outside
        else:
            box = RandomResizedCrop.get_params(image, self.scale, (3 / 4, 4 / 3))
        crop = TF.crop(image, *box)
        return self.augment(TF.horizontal_flip(crop) if self.flip and torch.rand(()) < 0.5 else crop)

    def see(self, crops: Sequence[PILImage.Image]) -> dict[str, object]:
        """Every view of the crops, by its key in the batch."""
        return {name: view.squash(crops) for name, view in self.views.items()}

    def __call__(self, batch: dict[str, list]) -> dict[str, object]:
        views = self.see([self.crop(image) for image in batch["image"]])
        return views | {key: batch[key] for key in ("labels",) if key in batch}


def draw_seed(*numbers: int) -> int:
    """A seed that depends on these numbers alone."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Augmented(Dataset):
    """Rows of a data set through a random transform whose random numbers depend on seed, epoch and row alone.

    So a sample is augmented alike in any process, worker and micro-batch, and after a resumption. GDKDTrainer calls
    `set_epoch`.

    Args:
        rows: samples with `image` and, if labelled, `labels`.
        transform: what makes pixels of them.
        seed: of all random numbers.
        mix: mixes each sample with another, drawn at random from the whole data set; None: not at all.
        repeats: how often an image stands in an epoch, augmented anew each time; the epoch stays as long, and other
            images are left out of it (repeated augmentation: Hoffer et al., arXiv 1901.09335).
    """

    def __init__(
        self, rows: Sequence, transform: TrainTransform, *, seed: int, mix: Mix | None = None, repeats: int = 1
    ) -> None:
        self.rows, self.transform, self.seed, self.mix, self.repeats = Opened(rows), transform, seed, mix, repeats
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers that live on

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sampler(self) -> Sampler | None:
        """The order of an epoch where images are repeated; None: the trainer's own."""
        return _Repeated(self) if self.repeats > 1 else None

    def __getitem__(self, index: int) -> dict[str, object]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, object]]:
        with torch.random.fork_rng(devices=[]):
            samples = [self._draw(index) for index in indices]
        views = self.transform.see([sample.pop("image") for sample in samples])
        return [sample | {key: pixels[i] for key, pixels in views.items()} for i, sample in enumerate(samples)]

    def _draw(self, index: int) -> dict[str, object]:
        """The sample with its random crop, before any view is made of it."""
        repeat, row = divmod(index, len(self.rows))
        torch.random.default_generator.manual_seed(draw_seed(self.seed, int(self._epoch), row, repeat))
        stored = self.rows[row]
        sample = {key: stored[key] for key in ("image", "labels") if key in stored} | {"sample_id": row}
        crops = [self.transform.crop(sample["image"])]
        if self.mix is None:
            return sample | {"image": crops[0]}
        other = self.rows[int(torch.randint(len(self.rows), ()))]
        crops.append(self.transform.crop(other["image"]))
        sample["image"], label = self.mix(crops, [each.get("labels", 0) for each in (sample, other)])
        return sample | ({"labels": label} if "labels" in sample else {})


class _Repeated(Sampler):
    """Each drawn row `repeats` times in a row, with another index, and so another augmentation, each time."""

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


class EvalTransform:
    """The image as the model's own image processor makes it."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __call__(self, batch: dict[str, list]) -> dict[str, object]:
        pixels = {"pixel_values": self.view.exact([to_rgb(image) for image in batch["image"]])}
        return pixels | {key: batch[key] for key in ("labels",) if key in batch}


class Viewed(Dataset):
    """Rows of a data set through a transform, a batch at a time."""

    def __init__(self, rows: Sequence, transform: Callable[[dict[str, list]], dict[str, object]]) -> None:
        self.rows, self.transform = Opened(rows), transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, object]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, object]]:
        samples = [self.rows[row] for row in rows]
        batch = self.transform({key: [sample[key] for sample in samples] for key in samples[0]})
        return [{key: values[i] for key, values in batch.items()} for i in range(len(rows))]


def collate(samples: Sequence[dict[str, object]]) -> dict[str, Tensor]:
    """Stack samples into a batch: pixel_values (N, 3, H, W), labels (N) or soft (N, C), teacher_pixel_values."""
    return {key: torch.stack([torch.as_tensor(sample[key]) for sample in samples]) for key in samples[0]}
