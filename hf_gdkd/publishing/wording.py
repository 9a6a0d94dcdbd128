"""What a card says of a student's task: what the model is, how to use it, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """The words for one task.

    `columns` are those of the table of results: heading, key in metrics.json, factor and format of its values.
    `results` are what the Hub lists: key in metrics.json, the metric's id there and its name.
    """

    pipeline: str  # the Hub's name of the task
    model: str
    use: str  # what the pipeline is called in the example
    columns: tuple[tuple[str, str, float, str], ...]
    results: tuple[tuple[str, str, str], ...]
    judged: str  # key of the metric that is followed in training
    judged_name: str
    batch_size: int  # in which the speed is measured
    units: str  # for how many of which two models predict the same class
    notes: str = ""


CLASSIFICATION, SEGMENTATION = "image-classification", "semantic-segmentation"
WORDINGS = {
    CLASSIFICATION: Wording(
        pipeline="image-classification",
        model="image classifier",
        use="classify",
        columns=(
            ("top-1, %", "top1", 100, "{:.2f}"),
            ("top-5, %", "top5", 100, "{:.2f}"),
            ("NLL, nats", "nll", 1, "{:.4f}"),
            ("ECE", "ece", 1, "{:.4f}"),
        ),
        results=(("top1", "accuracy", "top-1 accuracy"), ("top5", "accuracy", "top-5 accuracy")),
        judged="top1",
        judged_name="Top-1 accuracy",
        batch_size=64,
        units="images",
        notes="NLL is the negative log-likelihood of the labels, ECE the expected calibration error (15 bins, from 0 "
        "to 1).",
    ),
    SEGMENTATION: Wording(
        pipeline="image-segmentation",
        model="semantic segmentation model",
        use="segment",
        columns=(
            ("mean IoU, %", "mean_iou", 100, "{:.2f}"),
            ("pixel accuracy, %", "pixel_accuracy", 100, "{:.2f}"),
        ),
        results=(("mean_iou", "mean_iou", "mean IoU"), ("pixel_accuracy", "pixel_accuracy", "pixel accuracy")),
        judged="mean_iou",
        judged_name="Mean IoU",
        batch_size=8,
        units="labelled pixels",
        notes="IoU is the intersection over union of a class, from the pixels of all images together. One scale, no "
        "flips; the logits are resized bilinearly to the size of the mask.",
    ),
}
