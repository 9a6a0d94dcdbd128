"""The loss of label maps: that of classification on the pixels that count, exactly, whatever the resolution."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refusal
from tiny_training import config, make, rows
from torch import nn
from torch.nn import functional as F
from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

from hf_gdkd import GDKDTrainer, Teacher, build_loss
from hf_gdkd.data import collate
from hf_gdkd.evaluation import SegmentationMetrics, segmentation_metrics
from hf_gdkd.evaluation.segmentation import pixel_counts
from hf_gdkd.training.label_maps import labels_at, logits_at, summed_terms
from hf_gdkd.training.teacher import Ensemble

CLASSES, IGNORE = 6, 255
GOLDEN = json.loads((Path(__file__).parents[1] / "losses/golden_maps.json").read_text())["cases"]
LOSSES = {
    "kd": {"temperature": 2.0},
    "dkd": {"beta": 3.0},
    "gdkd": {"k": 2, "w2": 3.0},
    "gdkd3": {"k": 3},
    "gdkd with gamma": {"k": 2, "gamma": 0.7},
    "dist": {},
    "mlkd": {"mask_samples": True},
    "nkd": {},
    "luminet": {},
    "kd with scaled gradients": {"gradient_scaling": 2.0},
}


def maps(seed=0, size=(6, 4), labels=(12, 8), ignored=0.4):
    g = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 3, CLASSES, *size, generator=g, dtype=torch.float64)
    y = torch.randint(CLASSES, (3, *labels), generator=g)
    return student.requires_grad_(), teacher, y.masked_fill(torch.rand(3, *labels, generator=g) < ignored, IGNORE)


def loss_of(name):
    loss = build_loss(name.split()[0], **LOSSES[name])
    loss.dim = 1
    return loss


def nearest(labels, size):
    return F.interpolate(labels.unsqueeze(1).double(), size=size, mode="nearest").squeeze(1).long()


@pytest.mark.parametrize("resize", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_the_valid_pixels_as_samples_and_its_gradient(name, resize):
    """Property: maps are flattened, ignored pixels left out, and the loss is that of classification on the rest."""
    student, teacher, labels = maps()
    loss = loss_of(name)
    sums, size = summed_terms(loss, loss.parts, student, teacher, labels, resize=resize)
    assert size == ((12, 8) if resize else (6, 4))
    at = labels if resize else nearest(labels, (6, 4))
    keep = at != IGNORE
    flat = [
        (F.interpolate(x, size=(12, 8), mode="bilinear") if resize else x).permute(0, 2, 3, 1)[keep]
        for x in (student, teacher)
    ]
    expected = build_loss(name.split()[0], **LOSSES[name])(*flat, at[keep])
    value = loss.weigh(sums) / keep.sum()
    torch.testing.assert_close(value, expected)
    ours, theirs = (torch.autograd.grad(x, student, retain_graph=True)[0] for x in (value, expected))
    torch.testing.assert_close(ours, theirs)
    assert resize or not ours.permute(0, 2, 3, 1)[~keep].any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_a_valid_pixel_is_0_with_no_gradient(name):
    student, teacher, labels = maps(ignored=1.1)
    loss = loss_of(name)
    value = loss.weigh(summed_terms(loss, loss.parts, student, teacher, labels)[0])
    (gradient,) = torch.autograd.grad(value, student)
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("name", ["gdkd", "dist"])
def test_only_where_the_teacher_is_right(name):
    """Pixels of which the teacher's class is wrong add 0; so do images, of (N, C)."""
    student, teacher, labels = maps(labels=(6, 4))
    loss = loss_of(name)
    right = teacher.argmax(1) == labels
    sums, _ = summed_terms(loss, loss.parts, student, teacher, labels, only_right=True)
    flat = [x.permute(0, 2, 3, 1)[right] for x in (student, teacher)]
    expected = loss(*flat, labels[right]) * right.sum()
    torch.testing.assert_close(loss.weigh(sums), expected)
    images = [x.permute(0, 2, 3, 1).reshape(-1, CLASSES) for x in (student, teacher)]
    sums, size = summed_terms(loss, loss.parts, *images, labels.flatten(), only_right=True)
    torch.testing.assert_close(loss.weigh(sums), expected)
    assert size is None


def test_maps_without_labels_are_means_over_the_pixels():
    student, teacher, _ = maps()
    loss = loss_of("gdkd")
    sums, size = summed_terms(loss, loss.parts, student, teacher, None)
    torch.testing.assert_close(loss.weigh(sums) / 3, loss(student, teacher))
    assert size is None


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['loss']}-{case['seed']}")
def test_golden_values_of_the_authors_code(case):
    """Their GDKD, KD and CWD per pixel: value, parts and gradient, labels of another size brought down by nearest."""
    rng = np.random.default_rng(case["seed"])
    shape = [case[key] for key in "nchw"]
    teacher = rng.standard_normal(shape) * case["scale"]
    student = 0.5 * teacher + rng.standard_normal(shape) * case["scale"]
    labels = rng.integers(
        0, case["c"], size=(case["n"], case.get("label_h", case["h"]), case.get("label_w", case["w"]))
    )
    labels[rng.random(labels.shape) < case.get("ignore_fraction", 0)] = IGNORE
    student, teacher = torch.from_numpy(student).requires_grad_(), torch.from_numpy(teacher)
    loss = build_loss(case["loss"], **{key: v for key, v in case["params"].items() if key != "ignore_index"})
    loss.dim = 1

    sums, size = summed_terms(loss, loss.parts, student, teacher, torch.from_numpy(labels))
    count = case["n"] if size is None else (labels_at(torch.from_numpy(labels), size) != IGNORE).sum()
    value = loss.weigh(sums) / count
    value.backward()
    near = {"rel": 1e-6, "abs": 1e-12}
    assert value.item() == pytest.approx(case["value"], **near)
    assert student.grad.abs().sum().item() == pytest.approx(case["grad_abs_sum"], **near)
    assert student.grad[0].flatten()[:8].tolist() == pytest.approx(case["grad_first_row"], **near)
    assert {name: (sums[name] / count).item() for name in case["parts"]} == pytest.approx(case["parts"], **near)


class Segmenter(nn.Module):
    """A student of stride 2, or a teacher of stride 1."""

    def __init__(self, stride=2):
        super().__init__()
        self.head = nn.Conv2d(3, CLASSES, 3, stride, 1)

    def forward(self, pixel_values):
        return 2 * torch.tanh(self.head(pixel_values))


def scenes(samples=14, size=8, seed=5):
    """Some of them with few valid pixels, one with none."""
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randn(samples, 3, size, size, generator=g)
    labels = torch.randint(CLASSES, (samples, size, size), generator=g)
    labels[torch.rand(labels.shape, generator=g) < torch.rand(samples, 1, 1, generator=g)] = IGNORE
    labels[3] = IGNORE
    return [{"pixel_values": p, "labels": y} for p, y in zip(pixels, labels, strict=True)]


def trained(folder, batch, accumulate, student=None, teacher=None, data=None, **options):
    options = {"loss": "gdkd", "k": 2, "max_steps": 3, "label_smoothing_factor": 0.1} | options
    args = config(
        folder, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate,
        train_sampling_strategy="sequential", **options,
    )  # fmt: skip
    student, data = student or make(Segmenter), data or scenes()
    teacher = teacher or (None if options["loss"] == "ce" else make(lambda: Segmenter(1), 1))
    trainer = GDKDTrainer(student, teacher, args, train_dataset=data)
    trainer.train()
    return torch.cat([p.detach().flatten() for p in student.parameters()]), rows(trainer)


@pytest.mark.parametrize("options", [{}, {"resize_logits": True}, {"ignore_incorrect": True}], ids=str)
def test_micro_batches_do_not_change_the_step(tmp_path, options):
    """Of ragged data, whose images have from none to all of their pixels labelled: one step is one mean of pixels."""
    weights, log = trained(tmp_path / "whole", 12, 1, **options)
    for batch, accumulate in ((3, 4), (1, 12)):
        others, other_log = trained(tmp_path / f"{batch}", batch, accumulate, **options)
        torch.testing.assert_close(others, weights)
        for row, wanted in zip(other_log, log, strict=True):
            assert row | {"epoch": 0} == pytest.approx(wanted | {"epoch": 0}, rel=1e-4)
    assert (weights - trained(tmp_path / "other", 12, 1, loss="ce", k=None)[0]).norm() > 1e-3 * weights.norm()


def test_the_step_of_the_trainer_is_the_mean_over_the_pixels_of_all(tmp_path):
    """One step of SGD, by hand: cross-entropy at the labels' resolution, distillation at the student's."""
    data = scenes(6)
    student, teacher = make(Segmenter), make(lambda: Segmenter(1), 1)
    weights, log = trained(tmp_path, 2, 3, student, teacher, data, max_steps=1, kd_weight=0.7, label_smoothing_factor=0)
    pixels, labels = (torch.stack([sample[key] for sample in data]) for key in ("pixel_values", "labels"))
    own = make(Segmenter)
    z, t = own(pixels), logits_at(teacher(pixels), (4, 4)).detach()
    ce = F.cross_entropy(F.interpolate(z, size=(8, 8), mode="bilinear"), labels, ignore_index=IGNORE)
    small = nearest(labels, (4, 4))
    keep = small != IGNORE
    kd = build_loss("gdkd", k=2)(z.permute(0, 2, 3, 1)[keep], t.permute(0, 2, 3, 1)[keep])
    (ce + 0.7 * kd).backward()
    expected = torch.cat([(p - 0.3 * p.grad).detach().flatten() for p in own.parameters()])
    torch.testing.assert_close(weights, expected)
    assert (log[0]["ce"], log[0]["kd"]) == pytest.approx((ce.item(), kd.item()), rel=1e-5)


def test_a_step_without_a_valid_pixel_changes_nothing(tmp_path):
    blank = [sample | {"labels": torch.full((8, 8), IGNORE)} for sample in scenes(4)]
    weights, log = trained(tmp_path, 2, 2, data=blank, max_steps=1)
    torch.testing.assert_close(weights, torch.cat([p.detach().flatten() for p in make(Segmenter).parameters()]))
    assert log[0]["loss"] == 0


def test_an_auxiliary_head_is_trained_with_its_weight(tmp_path):
    backbone = ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4, 4, 8, 8],
        depths=[1] * 4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    options = {"hidden_size": 4, "auxiliary_channels": 4, "pool_scales": [1]}
    model = make(lambda: UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone, num_labels=CLASSES, auxiliary_loss_weight=0.3, **options)
    ))  # fmt: skip
    data = scenes(4, 32)
    with torch.no_grad():
        batch = {key: torch.stack([sample[key] for sample in data]) for key in data[0]}
        expected = model.train()(**batch).loss.item()
    _, log = trained(tmp_path, 4, 1, model, data=data, loss="ce", k=None, max_steps=1, label_smoothing_factor=0)
    assert log[0]["ce"] == pytest.approx(expected, rel=1e-4)


def test_labels_of_the_other_kind_are_refused(tmp_path):
    data = [sample | {"labels": 1} for sample in scenes(4)]
    refusal(lambda: trained(tmp_path, 2, 2, data=data), "(2, 6, 4, 4)", "(2,)")
    model = make(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)))
    refusal(lambda: trained(tmp_path, 2, 2, model), "(2, 6)", "(2, 8, 8)")


@pytest.mark.parametrize("loss", ["ce", "at", "cwd"])
def test_where_pixels_are_compared_one_by_one_alone(tmp_path, loss):
    refusal(lambda: config(tmp_path, loss, ignore_incorrect=True), "ignore_incorrect", loss)
    if loss != "cwd":
        refusal(lambda: config(tmp_path, loss, resize_logits=True), "resize_logits", loss)


def test_an_evaluation_keeps_a_confusion_matrix_an_image(tmp_path):
    """Whole images of several sizes: mean IoU is that of all their labelled pixels, and no prediction is gathered."""
    model, g = make(Segmenter), torch.Generator().manual_seed(0)
    sizes, counts, losses = [(8, 8), (8, 12), (10, 8)], torch.zeros(CLASSES, CLASSES, dtype=torch.int64), []
    data = [
        {"pixel_values": torch.randn(3, *size, generator=g), "labels": torch.randint(CLASSES, size, generator=g)}
        for size in sizes
    ]
    data[0]["labels"][:3] = IGNORE
    args = config(tmp_path, "ce", per_device_eval_batch_size=1, batch_eval_metrics=True)
    trainer = GDKDTrainer(
        model, None, args, eval_dataset=data, data_collator=collate, compute_metrics=SegmentationMetrics(CLASSES)
    )
    found = trainer.evaluate()
    for sample in data:
        labels = sample["labels"][None]
        logits = logits_at(model(sample["pixel_values"][None]), tuple(labels.shape[1:])).detach()
        losses.append(F.cross_entropy(logits, labels, ignore_index=IGNORE).item())
        counts += pixel_counts(logits.argmax(1), labels, CLASSES).sum(0)
    assert found["eval_mean_iou"] == pytest.approx(segmentation_metrics(counts)["mean_iou"])
    assert found["eval_loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_several_teachers_of_maps_at_the_resolution_of_the_first():
    teachers = [Teacher(make(lambda stride=stride: Segmenter(stride), stride)) for stride in (1, 2)]
    batch = {"pixel_values": torch.randn(2, 3, 8, 8)}
    first, second = (teacher(batch) for teacher in teachers)
    mean = (first.softmax(1) + F.interpolate(second, size=(8, 8), mode="bilinear").softmax(1)) / 2
    torch.testing.assert_close(Ensemble(teachers)(batch).exp(), mean)
    some = Teacher(teachers[0].model, columns=torch.tensor([4, 1]))
    torch.testing.assert_close(some(batch), first[:, [4, 1]])
