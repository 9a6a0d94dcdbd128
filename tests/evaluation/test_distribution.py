"""What is summed up of predictions, against loops over the images in float64."""

import math

import numpy as np
import pytest
import torch

from hf_gdkd.errors import InputError
from hf_gdkd.evaluation.distribution import Distribution, clusters, modes
from hf_gdkd.evaluation.metrics import classification_metrics
from hf_gdkd.losses.partition import knee

CLASSES = 6


@pytest.fixture
def sample():
    g = torch.Generator().manual_seed(0)
    return 3 * torch.randn(200, CLASSES, generator=g), torch.randint(CLASSES - 1, (200,), generator=g)


def loops(logits, labels, temperature):
    """The same, one image and one class after the other; the mass of the largest is at temperature 1."""
    groups = {name: np.zeros((CLASSES, CLASSES)) for name in ("prediction", "rest", "renormalized")}
    counts, mass = np.zeros(CLASSES), np.zeros(CLASSES - 1)
    entropy, rest_entropy = 0.0, 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        powers = [math.exp(z / temperature) for z in row]
        probs = [power / sum(powers) for power in powers]
        top = row.index(max(row))
        others = sum(p for i, p in enumerate(probs) if i != top)
        counts[label] += 1
        for i, p in enumerate(probs):
            groups["prediction"][label, i] += p
            entropy -= p * math.log(p)
            if i != top:
                groups["rest"][label, i] += p
                groups["renormalized"][label, i] += p / others
                rest_entropy -= p / others * math.log(p / others)
        plain = sorted((math.exp(z) for z in row), reverse=True)
        for k in range(1, CLASSES):
            mass[k - 1] += sum(plain[:k]) / sum(plain)
    averages = {
        name: np.stack([g[c] / counts[c] if counts[c] else g[c] * np.nan for c in range(CLASSES)])
        for name, g in groups.items()
    }
    n = len(labels)
    return averages, mass / n, entropy / n, rest_entropy / n


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_sums_are_those_of_loops(sample, temperature, monkeypatch):
    monkeypatch.setattr("hf_gdkd.evaluation.distribution.PIECE", 64)
    logits, labels = sample
    found = Distribution(CLASSES, temperature)
    for start in (0, 130):
        found.add(logits[start : start + 130][: 200 - start], labels[start : start + 130])
    averages, mass, entropy, rest_entropy = loops(logits, labels, temperature)
    for name, expected in averages.items():
        np.testing.assert_allclose(found.average(name), expected, atol=1e-12)
    numbers = found.numbers()
    np.testing.assert_allclose(found.mass, mass, atol=1e-12)
    assert numbers["entropy"] == pytest.approx(entropy) and numbers["rest_entropy"] == pytest.approx(rest_entropy)
    expected = classification_metrics(logits.numpy(), labels.numpy())
    assert {name: numbers[name] for name in expected} == pytest.approx(expected)
    right = [float((logits.argmax(1) == labels)[labels == c].float().mean()) for c in range(CLASSES - 1)]
    np.testing.assert_allclose(found.accuracies(), [*right, np.nan], rtol=1e-6)
    assert sum(numbers["entropy_histogram"]) == sum(numbers["rest_entropy_histogram"]) == 200


def test_without_labels_the_groups_are_the_predictions(sample):
    logits, _ = sample
    found, as_labels = Distribution(CLASSES), Distribution(CLASSES)
    found.add(logits)
    as_labels.add(logits, logits.argmax(1))
    np.testing.assert_array_equal(found.average("rest"), as_labels.average("rest"))
    assert not found.labelled and "top1" not in found.numbers()


def test_masked_classes_and_broken_logits():
    found = Distribution(4)
    found.add(torch.tensor([[1.0, 0.0, -torch.inf, -1.0]]))
    assert math.isfinite(found.numbers()["entropy"]) and math.isfinite(found.numbers()["rest_entropy"])
    for bad in (torch.nan, torch.inf):
        with pytest.raises(InputError, match="logits of 1 images are NaN or infinite"):
            found.add(torch.tensor([[1.0, 0.0, bad, 0.0]]))
    with pytest.raises(InputError, match="there are 2 classes"):
        Distribution(2)
    with pytest.raises(InputError, match="temperature is 0"):
        Distribution(3, 0)


def test_knee():
    assert knee([0.5, 0.7, 0.9, 0.91, 0.92, 0.93]) == 3
    assert knee([0.5, 0.6, 0.7]) == 1  # a straight line: the smallest


def test_modes_and_clusters():
    """Classes 0 and 1 are confused with each other, 2, 3 and 4 too; 5 with none."""
    share = np.full((6, 6), 0.02)
    share[0, 1] = share[1, 0] = 0.9
    for a, b in ((2, 3), (3, 4), (2, 4)):
        share[a, b] = share[b, a] = 0.45
    share[5] = 0.2
    np.fill_diagonal(share, 0)
    assert clusters(share) == [[2, 3, 4], [0, 1]]
    assert [[i for i, _ in line] for line in modes(share)] == [[1], [0], [3, 4], [2, 4], [2, 3], []]
