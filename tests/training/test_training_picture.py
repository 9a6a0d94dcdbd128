"""training.png: the crops that it shows are those of the training, the answers those of the models."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import ViTImageProcessor

from hf_gdkd import GDKDConfig, GDKDTrainer, Teacher
from hf_gdkd.data.augment import Mix
from hf_gdkd.data.datasets import Augmented, collate
from hf_gdkd.data.loading import load_data
from hf_gdkd.data.teacher_cache import TeacherCache
from hf_gdkd.data.views import TrainTransform, View
from hf_gdkd.training.cached_teacher import CachedTeacher
from hf_gdkd.training.training_picture import draw_training, examples_of

NAMES = [str(i) for i in range(10)]
HISTORY = [{"loss": 1.0, "epoch": 1.0, "step": 1}, {"eval_top1": 0.5, "epoch": 1.0, "step": 1}]


@pytest.fixture
def trained(tmp_path):
    """A trainer on crops of digits, and the student's view; `mix` mixes two images."""

    def make(loss="kd", mix=None):
        view = View(ViTImageProcessor(size={"height": 8, "width": 8}))
        rows = load_data("digits", train_rows=60).train
        train = Augmented(rows, TrainTransform(view, crop_scale=0.5, flip=False), seed=0, mix=mix)
        student, teacher = (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 10)) for _ in range(2))
        args = GDKDConfig(output_dir=str(tmp_path), loss=loss, use_cpu=True, report_to="none")
        teacher = None if loss == "ce" else teacher
        return GDKDTrainer(student, teacher, args, train_dataset=train, data_collator=collate), view

    return make


def test_crops_and_answers(trained, tmp_path):
    trainer, view = trained()
    examples = examples_of(trainer, view)
    trainer.model.eval()
    assert len(examples) == 6
    for row, example in zip((0, 59), (examples[0], examples[-1]), strict=True):
        sample = trainer.train_dataset[row]
        pixels = sample["pixel_values"]
        assert example.label == sample["labels"] and example.colours.shape == (8, 8, 3)
        torch.testing.assert_close(torch.from_numpy(example.colours).permute(2, 0, 1), pixels / 2 + 0.5)
        for name, model in (("student", trainer.model), ("teacher", trainer.teacher.model)):
            answer = model(pixels[None]).softmax(1)[0].detach()
            torch.testing.assert_close(torch.from_numpy(example.answers[name]), answer)
    draw_training(tmp_path, HISTORY, "title", examples, NAMES)
    with_crops = Image.open(tmp_path / "training.png").size
    draw_training(tmp_path, HISTORY, "title")
    assert Image.open(tmp_path / "training.png").size[1] < with_crops[1]


def test_answers_from_a_cache_that_has_some(trained, tmp_path):
    """A run that is stopped early leaves such a one; the teacher answers what is not in it."""
    trainer, view = trained()
    live = examples_of(trainer, view)
    module, data = trainer.teacher.model, trainer.train_dataset
    cache = TeacherCache(tmp_path / "cache", {}, rows=1437, classes=10, views=1)
    first = data[0]
    cache.record([first["sample_id"]], [0], module(first["pixel_values"][None]).detach().numpy())
    data.views, data.caches = 1, {"teacher_pixel_values": cache}
    data.transform.views["teacher_pixel_values"] = view
    args = GDKDConfig(output_dir=str(tmp_path), loss="kd", use_cpu=True, report_to="none")
    cached = CachedTeacher(cache, lambda: Teacher(module))
    trainer = GDKDTrainer(trainer.model, cached, args, train_dataset=data, data_collator=collate)
    for one, other in zip(examples_of(trainer, view), live, strict=True):
        np.testing.assert_allclose(one.answers["teacher"], other.answers["teacher"], atol=1e-3)


def test_without_a_teacher_and_without_labels_of_one_class(trained, tmp_path):
    trainer, view = trained("ce", Mix(10, (8, 8), mixup_alpha=1.0))
    examples = examples_of(trainer, view)
    assert {example.label for example in examples} == {None}
    assert all(example.answers.keys() == {"student"} for example in examples)
    draw_training(tmp_path, HISTORY, "title", examples, NAMES)
