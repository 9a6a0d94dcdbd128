"""Metrics of image classification, computed on arrays."""

from __future__ import annotations

import numpy as np
from transformers import EvalPrediction


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities (N, C), in float64."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


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


def agreement(logits: np.ndarray, others: np.ndarray) -> float:
    """The share of samples for which two models predict the same class; logits (N, C) of each."""
    return float((logits.argmax(-1) == others.argmax(-1)).mean())


def compute_agreement(prediction: EvalPrediction) -> dict[str, float]:
    """For label-free distillation, where the labels are the teacher's top-1 classes: `agreement`."""
    return {"agreement": compute_metrics(prediction)["top1"]}


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """For `Trainer(compute_metrics=...)`: those of `classification_metrics`."""
    return classification_metrics(prediction.predictions.astype(np.float32), prediction.label_ids)
