"""Metrics against hand-computed values and scikit-learn; nothing is downloaded (HF_HUB_OFFLINE)."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from transformers import EvalPrediction

from hf_gdkd.evaluation.metrics import (
    agreement,
    classification_metrics,
    compute_metrics,
    log_softmax,
)

HALF = np.log(np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]]))


def random_logits(samples=300, classes=12, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(0, 3, (samples, classes)).astype(np.float32), generator.integers(0, classes, samples)


def test_by_hand():
    """Two bins: confidence 0.5 and accuracy 0.5 (gap 0), confidence 0.8 and accuracy 0 (gap 0.8)."""
    found = classification_metrics(HALF, np.array([0, 1, 0, 2]))
    expected = {"top1": 0.25, "top5": 1.0, "nll": -np.log([0.5, 0.25, 0.1, 0.1]).mean(), "ece": 0.4}
    assert found == pytest.approx(expected)


def test_bins_that_are_too_sure_and_not_sure_enough_do_not_make_up_for_each_other():
    """Confidence 0.5 and accuracy 1, confidence 0.8 and accuracy 0."""
    assert classification_metrics(HALF, np.array([0, 0, 0, 2]))["ece"] == pytest.approx((0.5 + 0.8) / 2)


def test_against_scikit_learn():
    logits, labels = random_logits()
    found, classes = classification_metrics(logits, labels), np.arange(12)
    assert found["top1"] == pytest.approx(accuracy_score(labels, logits.argmax(-1)))
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=classes))
    assert found["nll"] == pytest.approx(log_loss(labels, np.exp(log_softmax(logits)), labels=classes))


@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
def test_ece_by_definition(scale):
    logits, labels = random_logits()
    probabilities = np.exp(log_softmax(logits * scale))
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & ((confidence < low + 1 / 15) | (low == 14 / 15))
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert classification_metrics(logits * scale, labels)["ece"] == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_top5_of_few_classes_is_one(classes):
    assert classification_metrics(*random_logits(classes=classes))["top5"] == 1.0


def test_ties_are_broken_as_argmax_breaks_them():
    generator = np.random.default_rng(0)
    logits, labels = generator.integers(0, 3, (500, 8)).astype(np.float32), generator.integers(0, 8, 500)
    assert classification_metrics(logits, labels)["top1"] == (logits.argmax(-1) == labels).mean()
    ranks = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
    assert classification_metrics(logits, labels)["top5"] == (ranks == labels[:, None]).any(-1).mean()


def test_nan_logits_are_wrong():
    logits = np.full((4, 6), np.nan, np.float32)
    logits[0] = np.arange(6)
    found = classification_metrics(logits, np.array([5, 0, 1, 2]))
    assert (found["top1"], found["top5"]) == (0.25, 0.25)
    assert np.isnan(found["nll"]) and np.isnan(found["ece"])


def test_large_logits_are_finite():
    found = classification_metrics(np.array([[1e4, 0.0], [0.0, -1e4]], np.float32), np.array([1, 0]))
    assert found == pytest.approx({"top1": 0.5, "top5": 1.0, "nll": 5000.0, "ece": 0.5})


def test_agreement():
    logits, _ = random_logits()
    other = np.roll(logits, 1, axis=-1)
    other[:75] = logits[:75] * 2
    assert agreement(logits, other) == 0.25 and agreement(logits, logits) == 1.0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_compute_metrics_computes_in_float32(dtype):
    logits, labels = random_logits()
    logits = logits.astype(dtype)
    expected = classification_metrics(logits.astype(np.float32), labels)
    assert compute_metrics(EvalPrediction(logits, labels)) == expected
