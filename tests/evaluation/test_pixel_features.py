"""The features of pixels are those that a model's head turns into the logits of these pixels."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from torch import nn
from transformers import SegformerImageProcessor

from hf_gdkd.data.segmentation_views import SegmentationView
from hf_gdkd.evaluation import Report, Segmenter
from hf_gdkd.evaluation.pixel_features import pixel_features
from hf_gdkd.evaluation.student_report import show_features
from hf_gdkd.training.label_maps import logits_at

NAMES = ["sky", "road", "car"]


class Colours(nn.Module):
    """What enters its head are the colours of the image."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 3, 1)

    def forward(self, pixels):
        return {"logits": self.head(pixels)}


class Halved(nn.Module):
    """A network at half the resolution, with a second head that runs after the one that answers."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 3, 1), nn.Conv2d(6, 3, 1)

    def forward(self, pixels):
        features = self.body(pixels)
        logits = logits_at(self.head(features), pixels.shape[2:])
        return {"logits": logits, "auxiliary": self.second(features.relu())}


@pytest.fixture(scope="module")
def scenes():
    """Images whose colours say where a pixel is: its row, its column and the image."""
    g, images, masks = np.random.default_rng(0), [], []
    for i, size in enumerate([(20, 26), (16, 31)]):
        images.append(PILImage.fromarray(np.stack([*np.indices(size), np.full(size, i)], -1).astype(np.uint8)))
        masks.append(PILImage.fromarray(g.choice([0, 1, 2, 255], size).astype(np.uint8)))
    return Dataset.from_dict({"image": images, "labels": masks}, Features({"image": Image(), "labels": Image()}))


@pytest.mark.parametrize("window", [None, 12])
def test_the_head_makes_the_logits_of_the_sampled_pixels_of_them(scenes, window):
    torch.manual_seed(0)
    view = SegmentationView(SegformerImageProcessor(size={"height": 16, "width": 16}))
    models = {"teacher": Segmenter(Colours(), view), "student": Segmenter(Halved(), view)}
    found, classes = pixel_features(models, scenes, most=81, window=window)
    assert {name: each.shape for name, each in found.items()} == {"teacher": (80, 3), "student": (80, 6)}
    colours = torch.tensor(found["teacher"]) * view.std.flatten() + view.mean.flatten()
    places = colours.round().long()
    assert places.unique(dim=0).shape == (80, 3) and places[:, 2].tolist() == [0] * 40 + [1] * 40
    head = models["student"].model.head
    with torch.no_grad():
        answers = torch.tensor(found["student"]) @ head.weight[:, :, 0, 0].T + head.bias
        logits = [models["student"].logits(view.squash([row["image"]]), window)[0] for row in scenes]
    masks = [np.asarray(row["labels"]) for row in scenes]
    assert classes.tolist() == [masks[i][y, x] for y, x, i in places.tolist()]
    torch.testing.assert_close(answers, torch.stack([logits[i][:, y, x] for y, x, i in places.tolist()]))
    again, _ = pixel_features(models, scenes, most=81, window=window)
    assert all((again[name] == each).all() for name, each in found.items())


def test_a_report_says_whose_head_cannot_be_found(scenes, tmp_path):
    view = SegmentationView(SegformerImageProcessor(size={"height": 16, "width": 16}))
    student = Halved()
    student.register_forward_hook(lambda model, args, output: {"logits": output["logits"].exp()})
    models = {"teacher": Segmenter(Halved(), view), "student": Segmenter(student, view)}
    report = Report("Two models", "on scenes")
    report.section("Features")
    show_features(report, lambda: pixel_features(models, scenes, most=80), NAMES, unit="pixels")
    page = report.write(tmp_path, {}).read_text()
    assert "cannot be shown: the student has no convolution that gives its logits" in page
    assert not (tmp_path / "features.png").exists()
