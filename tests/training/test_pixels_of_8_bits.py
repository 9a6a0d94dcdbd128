"""Images reach the device as 8 bits, and mean and std are applied there: the pixel values are the same, bit for bit."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from pictures import picture
from tiny_training import CLASSES, Plain, config
from torch.utils.data import TensorDataset
from transformers import ViTImageProcessor

from hf_gdkd import GDKDTrainer
from hf_gdkd.data import Augmented, AugmentedStream, TrainTransform, View, collate

STUDENT = View(ViTImageProcessor(size={"height": 8, "width": 8}))
TEACHER = View(ViTImageProcessor(size={"height": 12, "width": 12}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2] * 3))
TRANSFORM = TrainTransform(STUDENT, {"teacher_pixel_values": TEACHER}, crop_scale=0.5)


def rows():
    features = Features({"image": Image(), "labels": ClassLabel(num_classes=CLASSES)})
    return Dataset.from_dict(
        {"image": [picture(i) for i in range(12)], "labels": [i % CLASSES for i in range(12)]}, features=features
    )


def make_trainer(folder, data, **options):
    options = {"per_device_train_batch_size": 4, "remove_unused_columns": False} | options
    return GDKDTrainer(Plain(), None, config(folder, "ce", **options), train_dataset=data, data_collator=collate)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_that_of_normalised_samples(tmp_path, workers):
    data = Augmented(rows(), TRANSFORM, seed=3)
    trainer = make_trainer(tmp_path, data, dataloader_num_workers=workers)
    batch = next(iter(trainer.get_train_dataloader()))
    assert {batch[name].dtype for name in TRANSFORM.views} == {torch.uint8}
    expected = collate([data[row] for row in batch["sample_id"].tolist()])  # the data set itself is as it was
    torch.testing.assert_close(trainer._prepare_inputs(batch), expected, rtol=0, atol=0)
    torch.testing.assert_close(trainer._prepare_inputs(expected), expected, rtol=0, atol=0)


def test_a_stream_likewise(tmp_path):
    stream = AugmentedStream(rows().to_iterable_dataset().cast_column("image", Image(decode=False)), TRANSFORM, seed=3)
    trainer = make_trainer(tmp_path, stream, max_steps=2, dataloader_num_workers=0)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].dtype == torch.uint8
    samples = iter(stream)
    expected = collate([next(samples) for _ in range(4)])
    torch.testing.assert_close(trainer._prepare_inputs(batch), expected, rtol=0, atol=0)


def test_8_bits_that_are_not_ours_stay(tmp_path):
    batch = {"pixel_values": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}
    trainer = make_trainer(tmp_path, TensorDataset(torch.zeros(4)))
    assert trainer._prepare_inputs(batch)["pixel_values"].dtype == torch.uint8
