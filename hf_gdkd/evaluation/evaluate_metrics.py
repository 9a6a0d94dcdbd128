"""The metrics as modules of the library `evaluate`, which need no download; the commands do not use them."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from .metrics import agreement, classification_metrics

CITATION = "Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (expected calibration error)"


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

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, float] | None:
        """Compute on the arrays themselves when all of them are passed here: `evaluate` would copy them to Arrow."""
        if predictions is None or references is None or self.writer is not None or self.num_process > 1:
            return super().compute(predictions=predictions, references=references, **options)
        return self._compute(np.asarray(predictions, np.float32), np.asarray(references))


class ImageClassification(_LogitsMetric):
    """Compute top1, top5, nll (nats) and ece (15 bins of equal width) of logits (N, C) for labels (N).

    Examples:
        >>> metric = ImageClassification()
        >>> metric.compute(predictions=[[2.0, 0.0], [3.0, 1.0]], references=[0, 1])["top1"]
        0.5
    """

    description = "Top-1 and top-5 accuracy, negative log-likelihood in nats, expected calibration error over 15 bins."

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return classification_metrics(np.asarray(predictions), np.asarray(references))


class Agreement(_LogitsMetric):
    """Compute the share of samples for which two models predict the same class; both are logits (N, C).

    Examples:
        >>> Agreement().compute(predictions=[[2.0, 0.0], [3.0, 1.0]], references=[[1.0, 0.0], [0.0, 1.0]])
        {'agreement': 0.5}
    """

    description = "Share of samples for which two models predict the same class."
    references = datasets.List(datasets.Value("float32"))

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"agreement": agreement(np.asarray(predictions), np.asarray(references))}
