"""Metrics of image classification as `evaluate.Metric` modules that need no download."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np
from transformers import EvalPrediction

CITATION = "Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (expected calibration error)"


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities (N, C), in float64."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class _LogitsMetric(evaluate.Metric):
    """A metric over logits (N, C)."""

    description = ""
    references = datasets.Value("int64")

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation=CITATION,
            inputs_description="predictions: logits (N, C); references: see the description",
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float32")), "references": self.references}
            ),
        )


class ImageClassification(_LogitsMetric):
    """top1, top5, nll (nats), ece (15 bins of equal width); predictions: logits (N, C), references: labels (N)."""

    description = "Top-1 and top-5 accuracy, negative log-likelihood in nats, expected calibration error over 15 bins."

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        logits, labels = np.asarray(predictions), np.asarray(references)
        return classification_metrics(logits, labels)


class Agreement(_LogitsMetric):
    """Share of samples for which two models name the same class; predictions and references: logits (N, C)."""

    description = "Share of samples for which two models name the same class."
    references = datasets.List(datasets.Value("float32"))

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        same = np.asarray(predictions).argmax(-1) == np.asarray(references).argmax(-1)
        return {"agreement": float(same.mean())}


def classification_metrics(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> dict[str, float]:
    """top1, top5 (shares), nll (nats) and ece (share) of logits (N, C) for labels (N)."""
    rows = np.arange(len(labels))
    # The label's rank: how many classes stand above it. Among equal logits the lower class wins, as in argmax; a
    # row with NaN is wrong.
    own = logits[rows, labels][:, None]
    rank = (~(logits <= own)).sum(-1) + ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None])).sum(-1)
    log_probs = log_softmax(logits)
    confidence = np.exp(log_probs.max(-1))
    bin_of = np.minimum((np.nan_to_num(confidence) * bins).astype(int), bins - 1)
    gap = np.bincount(bin_of, weights=confidence - (rank == 0), minlength=bins)
    return {
        "top1": float((rank == 0).mean()),
        "top5": float((rank < 5).mean()),
        "nll": float(-log_probs[rows, labels].mean()),
        "ece": float(np.abs(gap).sum() / len(labels)),
    }


def compute_agreement(prediction: EvalPrediction) -> dict[str, float]:
    """For label-free distillation, where the labels are the teacher's top-1 classes: `agreement`."""
    return {"agreement": compute_metrics(prediction)["top1"]}


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """For `Trainer(compute_metrics=...)`: the numbers of `ImageClassification`."""
    return classification_metrics(prediction.predictions.astype(np.float32), prediction.label_ids)
