"""Segmenters are measured at full size, as a whole or in windows, in one pass, as a direct computation does."""

from multiprocessing import get_context

import numpy as np
import pytest
import torch
import torch.distributed as dist
from datasets import Dataset, Features, Image
from matplotlib.image import imread
from PIL import Image as PILImage
from torch import nn
from torch.nn import functional as F

from hf_gdkd.data.segmentation_views import SegmentationView
from hf_gdkd.errors import InputError
from hf_gdkd.evaluation.segmentation import pixel_counts, segmentation_metrics
from hf_gdkd.evaluation.segmentation_measurement import Segmenter, measure_segmenters, slide
from hf_gdkd.evaluation.segmentation_pictures import draw_segmentation, paint_differences, palette_of

NAMES = ["sky", "road", "car"]


class Network(nn.Module):
    """Logits at half the resolution; every pixel's depend on its neighbours."""

    def __init__(self, seed=0, classes=3):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Conv2d(3, classes, 3, stride=2, padding=1)

    def forward(self, pixel_values):
        return self.layer(pixel_values)


@pytest.fixture(scope="module")
def view():
    from transformers import SegformerImageProcessor

    return SegmentationView(SegformerImageProcessor(size={"height": 16, "width": 16}))


def scenes(sizes):
    g = np.random.default_rng(0)
    images = [PILImage.fromarray(g.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    masks = [PILImage.fromarray(g.choice([0, 1, 2, 255], size).astype(np.uint8)) for size in sizes]
    return Dataset.from_dict({"image": images, "labels": masks}, Features({"image": Image(), "labels": Image()}))


SIZES = [(16, 16)] * 5 + [(12, 20), (16, 16)]  # batches of one size and of several


def direct(model, rows, view):
    """Every image alone, as a whole: the classes that are predicted, and the masks."""
    answers, labels = [], []
    for row in rows:
        label = torch.from_numpy(np.asarray(row["labels"]).astype(np.int64))
        with torch.no_grad():
            logits = model(view.squash([row["image"]]))
        answers.append(F.interpolate(logits, label.shape, mode="bilinear").argmax(1).flatten())
        labels.append(label.flatten())
    return torch.cat(answers), torch.cat(labels)


def test_numbers_equal_a_direct_computation(view):
    rows, student, teacher = scenes(SIZES), Network(0), Network(1)
    (found,), (taught,) = measure_segmenters(
        [Segmenter(student, view)], rows, NAMES, teachers=[Segmenter(teacher, view)], batch_size=3, workers=0
    )
    (own, labels), (others, _) = (direct(model, rows, view) for model in (student, teacher))
    for numbers, predicted in ((found, own), (taught, others)):
        wanted = segmentation_metrics(pixel_counts(predicted[None], labels[None], 3)[0], NAMES)
        assert {key: numbers[key] for key in wanted} == wanted
        assert numbers["parameters"] == 84 and numbers["flops"] > 0 and numbers["images_per_second"] > 0
    assert found["agreement"] == pytest.approx((own == others)[labels != 255].float().mean().item())
    assert "agreement" not in taught


def test_classes_of_a_model_are_brought_into_the_data_sets_order(view):
    rows, model = scenes(SIZES[:3]), Network(0, classes=5)
    (found,), _ = measure_segmenters([Segmenter(model, view, torch.tensor([4, 0, 2]))], rows, NAMES, workers=0)
    model.layer.weight.data, model.layer.bias.data = (p[[4, 0, 2]] for p in (model.layer.weight, model.layer.bias))
    (wanted,), _ = measure_segmenters([Segmenter(model, view)], rows, NAMES, workers=0)
    assert found["iou"] == wanted["iou"]


def test_several_teachers_answer_by_the_mean_of_their_probabilities(view):
    rows, sure, unsure = scenes(SIZES[:3]), Network(1), Network(2)
    sure.layer.weight.data *= 100
    (found,), teachers = measure_segmenters(
        [Segmenter(sure, view)], rows, NAMES, teachers=[Segmenter(sure, view), Segmenter(unsure, view)], workers=0
    )
    assert found["agreement"] > 0.99 and len(teachers) == 2
    (alone,), _ = measure_segmenters(
        [Segmenter(unsure, view)], rows, NAMES, teachers=[Segmenter(sure, view)], workers=0
    )
    assert alone["agreement"] < 0.9


def test_windows_cover_the_image_and_are_averaged():
    """Of a model that knows its place only, each pixel gets the mean of its windows."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, pixels):
            self.seen.append(tuple(pixels.shape[-2:]))
            return pixels[:, :1]

    model, pixels = Counting(), torch.arange(30.0).view(1, 1, 3, 10)
    torch.testing.assert_close(slide(model, pixels, 6), pixels)  # rows of 3; columns 0 to 6 and 4 to 10
    assert model.seen == [(3, 6), (3, 6)]
    torch.testing.assert_close(
        slide(lambda x: x - x.mean(), torch.tensor([[[[0.0, 1, 2, 3]]]]), 3)[0, 0, 0], torch.tensor([-1, -0.5, 0.5, 1])
    )


def test_several_processes_find_what_one_finds(tmp_path, view):
    """Of sizes that differ, so that one process has more forward passes of its own than the other."""
    rows, models = scenes(SIZES), [Segmenter(Network(seed), view) for seed in range(2)]
    options = {"teachers": models[1:], "batch_size": 2, "workers": 0}
    (whole,), _ = measure_segmenters(models[:1], rows, NAMES, **options)
    context = get_context("fork")
    results = context.Queue()

    def work(rank):
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=rank, world_size=2)
        passes = []
        models[0].model.register_forward_hook(lambda *_: passes.append(1))
        results.put((measure_segmenters(models[:1], rows, NAMES, **options)[0][0], len(passes)))

    processes = [context.Process(target=work, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    assert answers[0][1] == answers[1][1]  # a model that is split over processes needs all to run equally often
    for found, _ in answers:
        assert {k: v for k, v in found.items() if k != "images_per_second"}.items() <= whole.items()
    for process in processes:
        process.join()


def test_data_without_a_labelled_pixel_and_masks_with_other_ids_are_refused(view):
    rows, model = scenes([(16, 16)]), Segmenter(Network(), view)
    empty = Dataset.from_dict({"image": rows["image"][:], "labels": [PILImage.new("L", (16, 16), 255)]}, rows.features)
    with pytest.raises(InputError, match="no pixel of the whole data set"):
        measure_segmenters([model], empty, NAMES, workers=0)
    with pytest.raises(InputError, match="a mask holds the class ids 2, expected 0 to 1"):
        measure_segmenters([Segmenter(Network(classes=2), view)], rows, NAMES[:2], workers=0)


def test_the_picture_says_who_is_wrong(tmp_path, view):
    labels, teacher, student = (np.array([ids]) for ids in ([255, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 1, 0, 2]))
    colours = paint_differences(labels, teacher, student)[0].tolist()
    assert colours[0] == [255, 255, 255] and len({tuple(colour) for colour in colours}) == 5
    assert paint_differences(labels, student)[0].tolist()[1:3] == [colours[1], colours[2]]
    assert len(np.unique(palette_of(19), axis=0)) == 19
    models = [Segmenter(Network(seed), view) for seed in range(2)]
    for teacher, columns in ((None, 4), (models[1], 5)):
        draw_segmentation(tmp_path / "a.png", scenes(SIZES), models[0], NAMES, teacher=teacher)
        height, width, _ = imread(tmp_path / "a.png").shape
        assert width == round(2.4 * columns * 110) and height > 4 * 200
