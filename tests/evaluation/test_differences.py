"""Where two models differ, against loops over the images in float64; images that are damaged, and models on them."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from hf_gdkd.evaluation.differences import CASES, MOST_DIFFERENT, Differences
from hf_gdkd.evaluation.robustness import CORRUPTIONS, corrupt

CLASSES, N = 5, 150


@pytest.fixture
def sample():
    g = torch.Generator().manual_seed(0)
    teacher, noise = 2 * torch.randn(2, N, CLASSES, generator=g)
    return teacher, teacher + noise, torch.randint(CLASSES, (N,), generator=g)


def softmax(row):
    powers = [math.exp(z) for z in row]
    return [p / sum(powers) for p in powers]


def test_sums_are_those_of_loops(sample):
    teacher, student, labels = sample
    found = Differences(CLASSES)
    for own in (slice(0, 90), slice(90, N)):
        found.add(range(N)[own], teacher[own], student[own], labels[own])
    cases, agree, kls = dict.fromkeys(CASES, 0), np.zeros(CLASSES), []
    for t, s, label in zip(teacher.tolist(), student.tolist(), labels.tolist(), strict=True):
        right = (t.index(max(t)) == label, s.index(max(s)) == label)
        cases[CASES[[(True, True), (True, False), (False, True), (False, False)].index(right)]] += 1
        agree[label] += t.index(max(t)) == s.index(max(s))
        kls.append(sum(p * math.log(p / q) for p, q in zip(softmax(t), softmax(s), strict=True)))
    numbers = found.numbers()
    assert numbers["kl"] == pytest.approx(np.mean(kls)) and numbers["agreement"] == agree.sum() / N
    assert numbers["cases"] == pytest.approx({name: count / N for name, count in cases.items()})
    np.testing.assert_allclose(found.agreement_of(), agree / np.bincount(labels))
    most = [(each.row, each.kl) for each in found.most_different]
    order = np.argsort(-np.array(kls))[:MOST_DIFFERENT]
    assert [row for row, _ in most] == order.tolist() and [kl for _, kl in most] == pytest.approx(
        np.sort(kls)[::-1][:12]
    )
    first = found.most_different[0]
    assert (first.label, first.teacher) == (int(labels[first.row]), int(teacher[first.row].argmax()))
    assert first.student_confidence == pytest.approx(max(softmax(student[first.row].tolist())))
    for name, logits in (("teacher", teacher), ("student", student)):
        np.testing.assert_allclose(found.correlations(name), np.corrcoef(logits.double().numpy().T), atol=1e-12)
    a, b, count = found.disagreements()[0]
    assert a != b and count == int(((teacher.argmax(1) == a) & (student.argmax(1) == b)).sum())


def test_without_labels_the_groups_are_the_teachers_classes(sample):
    teacher, student, _ = sample
    found, as_labels = Differences(CLASSES), Differences(CLASSES)
    found.add(range(N), teacher, student)
    as_labels.add(range(N), teacher, student, teacher.argmax(1))
    np.testing.assert_array_equal(found.agreement_of(), as_labels.agreement_of())
    assert "cases" not in found.numbers() and found.most_different[0].label is None


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("size", [(60, 40), (8, 8), (1, 3)])
def test_damage_grows_with_its_strength_and_is_the_same_each_time(kind, size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    damaged = [np.asarray(corrupt(image, kind=kind, strength=x), float) for x in CORRUPTIONS[kind]]
    assert all(each.shape == pixels.shape for each in damaged)
    np.testing.assert_array_equal(damaged[0], corrupt(image, kind=kind, strength=CORRUPTIONS[kind][0]))
    if size == (60, 40):
        changes = [np.abs(each - pixels).mean() for each in damaged]
        assert 0 < changes[0] < changes[1] < changes[2]
