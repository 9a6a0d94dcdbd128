"""Predictions equal a direct loop; sizes are those of networks that one can count by hand."""

from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from torch import nn
from transformers import ViTImageProcessor

from hf_gdkd.data.loading import load_data
from hf_gdkd.data.views import View
from hf_gdkd.errors import InputError
from hf_gdkd.evaluation import measurement
from hf_gdkd.evaluation.measurement import check_teacher, measure, measure_teacher, predict, side_by_side, size_of
from hf_gdkd.evaluation.metrics import classification_metrics
from hf_gdkd.training.teacher import Teacher

VIEW = View(ViTImageProcessor(size={"height": 8, "width": 8}))


def pictures(count, labelled=True):
    generator = np.random.default_rng(0)
    images = [PILImage.fromarray(generator.integers(0, 256, (9 + i % 3, 12, 3), dtype=np.uint8)) for i in range(count)]
    columns, features = {"image": images}, {"image": Image()}
    if labelled:
        columns, features = columns | {"labels": [i % 4 for i in range(count)]}, features | {"labels": ClassLabel(4)}
    return Dataset.from_dict(columns, Features(features))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 8 * 8, 4))


@pytest.mark.parametrize("count, batch_size", [(11, 4), (3, 64), (8, 8)])
def test_predict_equals_a_direct_loop(count, batch_size):
    rows, model = pictures(count), network()
    logits, labels, speed = predict(model, rows, VIEW, batch_size=batch_size)
    with torch.no_grad():
        direct = torch.cat([model.eval()(VIEW.exact([row["image"]])) for row in rows]).numpy()
    np.testing.assert_allclose(logits, direct, rtol=1e-5, atol=1e-6)
    assert labels.tolist() == rows["labels"][:] and logits.dtype == np.float32
    assert speed > 0
    assert classification_metrics(logits, labels)["top1"] == (direct.argmax(-1) == labels).mean()


def of_two_processes(tmp_path, function):
    """What `function` returns in each of two processes that torch.distributed joins."""
    context = get_context("fork")
    results = context.Queue()

    def work(rank):
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=rank, world_size=2)
        results.put((rank, function()))

    processes = [context.Process(target=work, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    return [found[rank] for rank in range(2)]


@pytest.mark.parametrize("count, labelled", [(11, True), (3, True), (16, False)])
def test_several_processes_share_the_rows_and_find_what_one_finds(tmp_path, count, labelled):
    """Three batches (one ragged) of two processes, one batch, and four batches: to the last bit, in the rows' order."""
    rows, model = pictures(count, labelled), network()
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    (logits, labels, _), (_, numbers) = predict(model, rows, VIEW, batch_size=4), measure(model, rows, VIEW)
    seen.clear()

    def both():
        found = predict(model, rows, VIEW, batch_size=4)[:2]
        return found, sum(seen), {k: v for k, v in measure(model, rows, VIEW)[1].items() if k != "images_per_second"}

    for (found, its_labels), images, its_numbers in of_two_processes(tmp_path, both):
        np.testing.assert_array_equal(found, logits)
        assert (labels is None and its_labels is None) or its_labels.tolist() == labels.tolist()
        assert its_numbers.items() <= numbers.items()
        assert images <= 8  # of 11 and of 16


def test_images_are_read_by_as_many_workers_as_in_training(monkeypatch):
    rows, model, asked = pictures(11), network(), []
    monkeypatch.setattr(measurement, "default_workers", lambda samples: asked.append(len(samples)) or 2)
    workers = predict(model, rows, VIEW, batch_size=4)[0]
    np.testing.assert_array_equal(workers, predict(model, rows, VIEW, batch_size=4, workers=0)[0])
    assert asked == [11]


def test_predict_without_labels():
    logits, labels, _ = predict(network(), pictures(5, labelled=False), VIEW)
    assert logits.shape == (5, 4) and labels is None


def test_predict_takes_outputs_with_logits():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, pixel_values):
            return SimpleNamespace(logits=self.inner(pixel_values))

    plain, _, _ = predict(network(), pictures(5), VIEW)
    np.testing.assert_array_equal(predict(Wrapped(), pictures(5), VIEW)[0], plain)


def test_size_of_linear():
    assert size_of(network(), VIEW) == {"parameters": 192 * 4 + 4, "flops": 2 * 192 * 4}


def test_size_of_convolution():
    """8 x 8 outputs of 5 channels, each of 3 x 3 x 3 multiply-adds."""
    model = nn.Conv2d(3, 5, 3, padding=1)
    assert size_of(model, VIEW) == {"parameters": 5 * 27 + 5, "flops": 2 * 64 * 5 * 27}


@pytest.mark.parametrize("training", [True, False])
def test_size_of_leaves_the_mode(training):
    model = network().train(training)
    model[2].bias.requires_grad_(False)
    size_of(model, VIEW)
    assert model.training is training
    assert [p.requires_grad for p in model.parameters()] == [True, False]


class WithToken(nn.Module):
    """A module of it is passed a view of a parameter, as in timm's cait, pit, test_vit3 and the siglip models."""

    def __init__(self):
        super().__init__()
        self.token, self.inner = nn.Parameter(torch.ones(1, 192)), nn.Linear(192, 4)

    def forward(self, pixel_values):
        return self.inner(self.token.expand(len(pixel_values), -1)) + self.inner(pixel_values.flatten(1))


def test_size_of_a_model_whose_modules_are_passed_views_of_parameters():
    assert size_of(WithToken(), VIEW) == {"parameters": 192 + 192 * 4 + 4, "flops": 2 * 2 * 192 * 4}


def test_flops_that_cannot_be_counted_are_none(caplog):
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, pixel_values):
            if len(pixel_values) == 1:
                raise RuntimeError("needs two images\nand more")
            return self.body(pixel_values)

    assert size_of(Picky(), VIEW) == {"parameters": 192 * 4 + 4, "flops": None}
    assert caplog.messages == ["FLOPs of Picky cannot be counted: needs two images."]
    assert measure(Picky(), pictures(4), VIEW)[1].keys() >= {"top1", "nll", "images_per_second"}


def test_side_by_side():
    rows, teacher = pictures(12), Teacher(network(), view=VIEW, name="it")
    logits, own = measure(teacher.model, rows, VIEW)
    logits[:3] = -logits[:3]
    found = side_by_side(logits, [teacher], rows)
    assert found["agreement"] == 0.75
    assert found["teachers"]["it"]["top1"] == own["top1"]
    assert side_by_side(logits, [teacher], rows, labelled=False)["teachers"]["it"].keys() == {
        "parameters", "flops", "images_per_second",
    }  # fmt: skip


def test_a_teacher_is_measured_in_the_label_space_of_the_data():
    rows, columns = pictures(12), [2, 0, 3, 1]
    teacher = Teacher(network(), view=VIEW, columns=torch.tensor(columns))
    logits, numbers = measure_teacher(teacher, rows)
    np.testing.assert_array_equal(logits, predict(teacher.model, rows, VIEW)[0][:, columns])
    top1 = (logits.argmax(-1) == rows["labels"][:]).mean()
    assert numbers["top1"] == check_teacher(teacher, rows, allow_weak=True) == pytest.approx(top1)


def test_a_teacher_near_chance_is_refused_unless_allowed():
    data = load_data("digits")

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.arange(10.0))

        def forward(self, pixel_values):
            return self.bias.expand(len(pixel_values), -1)

    teacher = Teacher(Constant(), view=VIEW)
    with pytest.raises(
        InputError, match=r"top-1 accuracy is \d+\.\d% on 360 samples, near chance \(10\.0%\).*label_map"
    ):
        check_teacher(teacher, data.eval)
    assert check_teacher(teacher, data.eval, allow_weak=True) == pytest.approx(0.1, abs=0.05)
