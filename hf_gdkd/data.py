"""Name -> data set, its columns and classes; one crop a sample, seen by student and teacher each in its own way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset
from datasets.exceptions import DatasetsError
from PIL import Image as PILImage
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as TF
from tqdm.auto import tqdm
from transformers import BaseImageProcessor
from transformers.image_processing_backends import TorchvisionBackend

from .errors import InputError, first_sentence

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
EVAL_SPLITS = ("validation", "valid", "val", "test")
HELD_OUT = 0.1  # of the train split, when the data set has no other split
CHECKED_ROWS = 20_000  # images decoded before training; those of a larger data set are checked as they are read


@dataclass
class Data:
    """A data set for image classification: `train` and `eval` with columns `image` and (if labelled) `labels`."""

    name: str
    train: Dataset
    eval: Dataset
    eval_split: str
    label_names: list[str] | None
    flip: bool = True
    crop_scale: float = 0.08


def load_digits() -> DatasetDict:
    """scikit-learn's 1,797 scanned digits, 8 x 8 grey: 1,437 to train, 360 to test, stratified, always the same."""
    from sklearn import datasets as sklearn_datasets
    from sklearn.model_selection import train_test_split

    digits = sklearn_datasets.load_digits()
    features = Features({"image": Image(), "label": ClassLabel(names=[str(i) for i in range(10)])})
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    rows = train_test_split(np.arange(len(pixels)), test_size=360, stratify=digits.target, random_state=0)
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"image": [PILImage.fromarray(p) for p in pixels[index]], "label": digits.target[index]},
                features,
            )
            for split, index in zip(("train", "test"), rows, strict=True)
        }
    )


def load_data(
    name: str,
    *,
    config: str | None = None,
    train_split: str = "train",
    eval_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    revision: str | None = None,
    seed: int = 42,
) -> Data:
    """A data set by name: `digits`, an id on the Hub, or a local folder (imagefolder, parquet).

    Without `eval_split` the first of validation, valid, val and test is taken; a data set with a train split only
    has a tenth of it held out, stratified.

    Raises:
        InputError: no such data set, split or column; labels that are out of range.
    """
    splits = load_digits() if name == "digits" else _load(name, config, revision)
    eval_split = eval_split or next((s for s in EVAL_SPLITS if s in splits and s != train_split), None)
    for split in (train_split, eval_split or train_split):
        if split not in splits:
            raise InputError(f"data set {name} has no split {split!r}: choose one of {', '.join(splits)}.")
    image, label = _find_columns(name, splits[train_split], image_column, label_column)
    splits = DatasetDict({split: _rename(splits[split], image, label) for split in (train_split, eval_split) if split})
    label_names = None
    if label is not None:
        splits = _encode_labels(name, splits)
        label_names = splits[train_split].features["labels"].names
        for split, rows in splits.items():
            _check_labels(name, split, rows, len(label_names))
    train = splits[train_split]
    if eval_split is None:
        eval_split, (train, evaluation) = f"{train_split} (held-out tenth)", _hold_out(train, seed)
    else:
        evaluation = splits[eval_split]
    digits = name == "digits"
    return Data(name, train, evaluation, eval_split, label_names, flip=not digits, crop_scale=0.6 if digits else 0.08)


def _load(name: str, config: str | None, revision: str | None) -> DatasetDict:
    if not os.path.isdir(name) and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise InputError(f"no folder {name}: give an existing folder of images, an id on the Hub, or digits.")
    try:
        return load_dataset(name, config, revision=revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        text = str(error.__cause__ or error) if isinstance(error, DatasetsError) else str(error)
        if "pick one among the available configs" in text:
            text = f"give --dataset_config, one of {text[text.index('[') + 1 : text.index(']')]}"
        raise InputError(f"data set {name} cannot be loaded: {first_sentence(ValueError(text))}") from error


def _hold_out(rows: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Nine tenths to train and a tenth to evaluate, stratified unless a class is too small for that."""
    try:
        halves = rows.train_test_split(HELD_OUT, seed=seed, stratify_by_column="labels")
    except ValueError:  # no labels, a class of one image, or more classes than a tenth of the rows
        halves = rows.train_test_split(HELD_OUT, seed=seed)
    return halves["train"], halves["test"]


def _find_columns(name: str, rows: Dataset, image: str | None, label: str | None) -> tuple[str, str | None]:
    """The columns that hold images and labels (None: no labels)."""
    listed = ", ".join(f"{column} ({_kind(feature)})" for column, feature in rows.features.items())
    images = [column for column, feature in rows.features.items() if isinstance(feature, Image)]
    if image is None:
        image = next((c for c in IMAGE_COLUMNS if c in images), images[0] if len(images) == 1 else None)
    if image not in images:
        raise InputError(
            f"data set {name} has no image column {f'{image} ' if image else ''}among its columns {listed}: "
            "give --image_column."
        )
    classes = [column for column, feature in rows.features.items() if isinstance(feature, ClassLabel)]
    if label is None:
        label = next((c for c in LABEL_COLUMNS if c in rows.features), classes[0] if len(classes) == 1 else None)
    elif label not in rows.features:
        raise InputError(
            f"data set {name} has no label column {label} among its columns {listed}: give --label_column."
        )
    return image, label


def _kind(feature: object) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def _rename(rows: Dataset, image: str, label: str | None) -> Dataset:
    rows = rows.select_columns([image] if label is None else [image, label])
    return rows.rename_columns({image: "image"} if label is None else {image: "image", label: "labels"})


def _encode_labels(name: str, splits: DatasetDict) -> DatasetDict:
    """Labels that are text or whole numbers become classes: the values of all splits together, sorted."""
    feature = next(iter(splits.values())).features["labels"]
    if isinstance(feature, ClassLabel):
        return splits
    dtype = feature.dtype if isinstance(feature, Value) else ""
    if "string" not in dtype and "int" not in dtype and dtype != "bool":
        raise InputError(
            f"data set {name} has labels of type {_kind(feature)}, expected one class, text or whole number an image: "
            "give --label_column."
        )
    values = set()
    for split, rows in splits.items():
        labels = rows["labels"][:]
        _check_rows(name, split, labels, [v is None or ("int" in dtype and v < 0) for v in labels], "no classes")
        values |= set(labels)
    values = sorted(values)
    classes, index = ClassLabel(names=[str(v) for v in values]), {v: i for i, v in enumerate(values)}
    return DatasetDict(
        {
            split: rows.remove_columns("labels").add_column(
                "labels", [index[v] for v in rows["labels"]], feature=classes
            )
            for split, rows in splits.items()
        }
    )


def _check_labels(name: str, split: str, rows: Dataset, num_labels: int) -> None:
    labels = rows.select_columns("labels").with_format("arrow")[:]["labels"].to_pylist()
    bad = [v is None or not 0 <= v < num_labels for v in labels]
    _check_rows(name, split, labels, bad, f"outside 0 to {num_labels - 1}")


def _check_rows(name: str, split: str, labels: Sequence[object], bad: Sequence[bool], what: str) -> None:
    if any(bad):
        raise InputError(
            f"data set {name}, split {split}: {sum(bad)} labels are {what}, the first {labels[bad.index(True)]} "
            f"in row {bad.index(True)}: choose a labelled split or mend the labels."
        )


def check_images(rows: Dataset, what: str) -> None:
    """Decode every image of a data set of up to 20,000 rows.

    Raises:
        InputError: an image that cannot be read, with its row.
    """
    if len(rows) > CHECKED_ROWS:
        return
    for row in tqdm(range(len(rows)), desc=f"checking images ({what})", leave=False, disable=len(rows) < 2000):
        try:
            rows[row]["image"].load()
        except Exception as error:  # whatever a decoder stumbles on
            stored = rows.cast_column("image", Image(decode=False))[row]["image"] or {}
            path = f" ({stored['path']})" if stored.get("path") else ""
            raise InputError(
                f"{what} image in row {row}{path} cannot be read ({first_sentence(error)[:-1]}): remove or replace it."
            ) from error


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
        pixels = torch.stack([self._resize(crop) for crop in crops])
        if self.channels != [0, 1, 2]:
            pixels = pixels[:, self.channels]
        return pixels.float().sub_(self.mean.view(3, 1, 1)).div_(self.std.view(3, 1, 1))

    def _resize(self, crop: PILImage.Image) -> Tensor:
        image = crop if self.on_pil else TF.pil_to_tensor(crop)
        image = TF.resize(image, list(self.size), self.interpolation, antialias=True)
        return TF.pil_to_tensor(image) if self.on_pil else image

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
    """One random crop and flip a sample, then the student's view of it and, where it differs, the teacher's.

    Args:
        student: the student's view, in `pixel_values`.
        teacher: the teacher's, in `teacher_pixel_values`; None when the student's serves both.
        crop_scale: smallest share of the image's area that a crop keeps; 1 keeps the whole image.
        flip: flip half of the images from left to right.
    """

    def __init__(
        self, student: View, teacher: View | None = None, *, crop_scale: float = 0.08, flip: bool = True
    ) -> None:
        self.student, self.teacher, self.scale, self.flip = student, teacher, (crop_scale, 1.0), flip

    def crop(self, image: PILImage.Image) -> PILImage.Image:
        """The crop, at the image's own resolution, so that each view resizes once."""
        top, left, height, width = RandomResizedCrop.get_params(image, self.scale, (3 / 4, 4 / 3))
        crop = TF.crop(image.convert("RGB"), top, left, height, width)
        return TF.horizontal_flip(crop) if self.flip and torch.rand(()) < 0.5 else crop

    def __call__(self, batch: dict[str, list]) -> dict[str, object]:
        crops = [self.crop(image) for image in batch["image"]]
        views = {"pixel_values": self.student.squash(crops)}
        if self.teacher is not None:
            views["teacher_pixel_values"] = self.teacher.squash(crops)
        return views | {key: batch[key] for key in ("labels",) if key in batch}


class EvalTransform:
    """The image as the model's own image processor makes it."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __call__(self, batch: dict[str, list]) -> dict[str, object]:
        pixels = {"pixel_values": self.view.exact([image.convert("RGB") for image in batch["image"]])}
        return pixels | {key: batch[key] for key in ("labels",) if key in batch}


def collate(samples: Sequence[dict[str, object]]) -> dict[str, Tensor]:
    """Stack samples into a batch: pixel_values (N, 3, H, W), labels (N) or soft (N, C), teacher_pixel_values."""
    return {key: torch.stack([torch.as_tensor(sample[key]) for sample in samples]) for key in samples[0]}
