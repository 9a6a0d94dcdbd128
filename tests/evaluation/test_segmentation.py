"""The confusion matrix and what it says equal scikit-learn and evaluate's formula; nothing else is kept."""

from multiprocessing import get_context

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.metrics import confusion_matrix, jaccard_score
from tiny_training import config
from torch import nn
from transformers import EvalPrediction

from hf_gdkd import GDKDTrainer
from hf_gdkd.data.masks import IGNORE
from hf_gdkd.errors import InputError
from hf_gdkd.evaluation.segmentation import (
    ConfusionMatrix,
    SegmentationMetrics,
    pixel_counts,
    predicted_classes,
    segmentation_metrics,
)

CLASSES = 6  # class 4 is in masks only, class 5 in neither


def masks(images=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (images, 9, 7), generator=g)
    predicted = torch.where(
        torch.rand(labels.shape, generator=g) < 0.4, torch.randint(4, labels.shape, generator=g), labels
    )
    predicted[predicted == 4] = 0
    labels[torch.rand(labels.shape, generator=g) < 0.2] = IGNORE
    return predicted, labels


def evaluate_mean_iou(predicted, labels):
    """The formula of huggingface/evaluate's metrics/mean_iou: intersect_and_union summed over images, then nanmean."""
    intersection, union = np.zeros(CLASSES), np.zeros(CLASSES)
    for one, label in zip(predicted.numpy(), labels.numpy(), strict=True):
        kept = label != IGNORE
        one, label = one[kept], label[kept]
        areas = [np.histogram(x, bins=CLASSES, range=(0, CLASSES - 1))[0] for x in (one[one == label], one, label)]
        intersection += areas[0]
        union += areas[1] + areas[2] - areas[0]
    with np.errstate(invalid="ignore"):
        return np.nanmean(intersection / union), intersection / union


def confusion_of(predicted, labels):
    confusion = ConfusionMatrix(CLASSES)
    for one, label in zip(predicted, labels, strict=True):
        confusion.add(one, label)
    return confusion


def test_counts_and_metrics_equal_scikit_learn_and_evaluate():
    predicted, labels = masks()
    counts = confusion_of(predicted, labels).total()
    kept = labels != IGNORE
    assert counts.dtype == torch.int64
    np.testing.assert_array_equal(counts, confusion_matrix(labels[kept], predicted[kept], labels=range(CLASSES)))
    metrics = segmentation_metrics(counts, [f"c{i}" for i in range(CLASSES)])
    mean, by_class = evaluate_mean_iou(predicted, labels)
    jaccard = jaccard_score(labels[kept], predicted[kept], labels=range(5), average=None)
    assert abs(metrics["mean_iou"] - mean) < 1e-9 and abs(metrics["mean_iou"] - jaccard.mean()) < 1e-9
    assert [metrics["iou"][f"c{i}"] for i in range(5)] == pytest.approx(by_class[:5], abs=1e-9)
    assert metrics["iou"]["c4"] == 0 and metrics["iou"]["c5"] is None and metrics["absent_classes"] == 1
    assert abs(metrics["pixel_accuracy"] - (predicted == labels)[kept].double().mean().item()) < 1e-9


def test_counts_are_exact_where_float32_is_not():
    confusion = ConfusionMatrix(2)
    confusion.counts += 2**24
    confusion.add(torch.zeros(1, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8))
    assert confusion.total()[0, 0] == 2**24 + 1


@pytest.mark.parametrize("which, ids", [("mask", [0, 7, 254]), ("mask", [-1, 0, 0]), ("prediction", [6, 6, 0])])
def test_ids_that_are_no_class_are_an_error(which, ids):
    wrong, right = torch.tensor(ids), torch.tensor([0, 1, 2])
    predicted, labels = (right, wrong) if which == "mask" else (wrong, right)
    with pytest.raises(InputError, match=f"{which} holds the class ids .*expected 0 to 5 or 255"):
        pixel_counts(predicted[None], labels[None], CLASSES)


def test_several_processes_sum_their_counts(tmp_path):
    predicted, labels = masks()
    whole = confusion_of(predicted, labels).total()
    context = get_context("fork")
    results = context.Queue()

    def work(rank):
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=rank, world_size=2)
        results.put(confusion_of(predicted[rank::2], labels[rank::2]).total().tolist())

    processes = [context.Process(target=work, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [whole.tolist()] * 2
    for process in processes:
        process.join()


def test_logits_are_resized_before_the_argmax():
    """Two pixels, 1 and 3: bilinearly at double width 1, 1.5, 2.5, 3, against 2.75 everywhere."""
    logits = torch.tensor([[[[1.0, 3.0]], [[2.75, 2.75]]]])
    assert predicted_classes(logits, (1, 4)).tolist() == [[[1, 1, 1, 0]]]


def test_a_trainer_keeps_counts_alone_and_gets_the_metrics_of_all_batches():
    g = torch.Generator().manual_seed(0)
    logits, (_, labels) = torch.randn(5, CLASSES, 5, 4, generator=g), masks()
    metrics, direct = (
        SegmentationMetrics(CLASSES),
        segmentation_metrics(pixel_counts(predicted_classes(logits, (9, 7)), labels, CLASSES).sum(0)),
    )
    for sign in (-1, 1):  # two evaluations: the second starts anew
        found = {}
        for part in (slice(0, 3), slice(3, 5)):
            kept = metrics.preprocess(sign * logits[part], labels[part])
            assert kept.shape[1:] == (CLASSES, CLASSES)
            found = metrics(EvalPrediction(predictions=kept, label_ids=labels[part]), compute_result=part.stop == 5)
    assert found == {key: direct[key] for key in ("mean_iou", "pixel_accuracy")}


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, CLASSES, 3, stride=2, padding=1)

    def forward(self, pixel_values):
        return self.layer(pixel_values)


def test_the_trainer_evaluates_with_them_and_keeps_no_prediction(tmp_path):
    """Five images in batches of two; what evaluate says is that of all pixels together."""
    g = torch.Generator().manual_seed(0)
    pixels, (_, labels) = torch.randn(5, 3, 9, 7, generator=g), masks()
    rows = [{"pixel_values": each, "labels": label} for each, label in zip(pixels, labels, strict=True)]
    kept, metrics = [], SegmentationMetrics(CLASSES)

    def compute_metrics(prediction, compute_result):
        kept.append(tuple(prediction.predictions.shape))
        return metrics(prediction, compute_result)

    args = config(tmp_path, "ce", batch_eval_metrics=True, per_device_eval_batch_size=2)
    trainer = GDKDTrainer(
        Conv(), args=args, train_dataset=rows, eval_dataset=rows,
        compute_metrics=compute_metrics, preprocess_logits_for_metrics=metrics.preprocess,
    )  # fmt: skip
    found = trainer.evaluate()
    with torch.no_grad():
        direct = segmentation_metrics(pixel_counts(predicted_classes(Conv()(pixels), (9, 7)), labels, CLASSES).sum(0))
    assert {key: found[f"eval_{key}"] for key in ("mean_iou", "pixel_accuracy")}.items() <= direct.items()
    assert kept == [(2, CLASSES, CLASSES)] * 2 + [(1, CLASSES, CLASSES)]
