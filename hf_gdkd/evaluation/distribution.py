"""What a classifier's predictions look like over many images, summed up in one pass.

The paper's Figures 4 and 5 are averages of this kind: the prediction for the images of each class, and what is left of
it without each image's largest entry.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from ..errors import InputError
from ..losses.partition import MOST_K, knee, top_mass

BINS = 15  # of confidence, as in `classification_metrics`
HISTOGRAM = 40  # bins of the entropies, from 0 to log(C)
PIECE = 256  # images at a time


class Distribution:
    """Sums over images of a classifier's predictions; memory does not grow with the number of images, but with C².

    Images are grouped by label, or without labels by the class that is predicted. Accuracy, calibration, confidence
    and the masses of the largest classes are at temperature 1, the rest at `temperature`. "The rest" of a prediction
    is it without its largest entry, which differs from image to image.

    >>> import torch
    >>> found = Distribution(3)
    >>> found.add(torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), torch.tensor([0, 2]))
    >>> found.top1, [round(mass, 3) for mass in found.mass]
    (1.0, [0.665, 0.91])

    Args:
        num_classes: C, at least 3.
        temperature: T > 0 of the averages and the entropies.
        unit: what is classified, for the words of a report: images or pixels.

    Raises:
        InputError: fewer classes, or a temperature that is not positive.
    """

    def __init__(self, num_classes: int, temperature: float = 1.0, unit: str = "images") -> None:
        if num_classes < 3:
            raise InputError(f"there are {num_classes} classes, and a prediction without its largest entry needs 3.")
        if not temperature > 0:
            raise InputError(f"temperature is {temperature}: use a number above 0.")
        self.num_classes, self.temperature, self.unit = num_classes, temperature, unit
        self.ks = range(1, min(MOST_K, num_classes - 1) + 1)
        square, each = (num_classes, num_classes), (num_classes,)
        shapes: dict[str, tuple[int, ...]] = {
            **{"images": (), "labelled": (), "top1": (), "top5": (), "nll": (), "confidence": ()},
            **{"prediction": square, "rest": square, "renormalized": square, "confusions": square},
            **{"entropy": each, "rest_entropy": each, "confidence_of": each, "images_of": each},
            **{"mass": (len(self.ks),), "calibration": (3, BINS), "histograms": (2, HISTOGRAM)},
        }
        self.sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def add(self, logits: Tensor, labels: Tensor | None = None) -> None:
        """Add images: logits (N, C), and the labels (N) if there are any.

        Raises:
            InputError: a logit that is NaN or plus infinity.
        """
        for start in range(0, len(logits), PIECE):
            own = slice(start, start + PIECE)
            self._add(logits[own].cpu().double(), None if labels is None else labels[own].cpu())

    def _add(self, logits: Tensor, labels: Tensor | None) -> None:
        if bad := int((logits.isnan() | logits.isposinf()).any(1).sum()):
            raise InputError(f"the logits of {bad} images are NaN or infinite: check the model's weights.")
        sums, predicted = self.sums, logits.argmax(1)
        log_norm = (logits / self.temperature).logsumexp(1, keepdim=True)
        probs = (logits / self.temperature - log_norm).exp_()
        rest = probs.scatter(1, predicted[:, None], 0.0)
        renormalized = (logits / self.temperature).scatter(1, predicted[:, None], -torch.inf).softmax(1)
        group = predicted if labels is None else labels
        sums["images"] += len(logits)
        sums["images_of"] += torch.bincount(group, minlength=self.num_classes)
        for name, values in (("prediction", probs), ("rest", rest), ("renormalized", renormalized)):
            sums[name].index_add_(0, group, values)
        entropies = torch.stack([torch.special.entr(each).sum(1) for each in (probs, renormalized)])
        sums["entropy"].index_add_(0, group, entropies[0])
        sums["rest_entropy"].index_add_(0, group, entropies[1])
        places = (entropies / np.log(self.num_classes) * HISTOGRAM).long().clamp(0, HISTOGRAM - 1)
        sums["histograms"] += torch.stack([torch.bincount(each, minlength=HISTOGRAM) for each in places])
        sums["mass"] += top_mass(logits, len(self.ks)).sum(0)
        plain_norm = logits.logsumexp(1) if self.temperature != 1 else log_norm[:, 0]
        confidence = (logits.amax(1) - plain_norm).exp()
        sums["confidence"] += confidence.sum()
        sums["confidence_of"].index_add_(0, group, confidence)
        if labels is None:
            return
        right = predicted == labels
        sums["labelled"] += len(labels)
        sums["top1"] += right.sum()
        largest = logits.topk(min(5, self.num_classes), dim=1)
        sums["top5"] += (largest.indices == labels[:, None]).any(1).sum()
        sums["nll"] += (plain_norm - logits.gather(1, labels[:, None])[:, 0]).sum()
        pair = labels * self.num_classes + predicted
        sums["confusions"] += torch.bincount(pair, minlength=self.num_classes**2).view(self.num_classes, -1)
        bins = (confidence * BINS).long().clamp(max=BINS - 1)
        for line, weights in zip(sums["calibration"], (torch.ones_like(confidence), confidence, right), strict=True):
            line += torch.bincount(bins, weights=weights.double(), minlength=BINS)

    def gather(self, device: torch.device | str = "cpu") -> None:
        """Add up what the processes of torch.distributed have seen, each its own images."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            for name, values in self.sums.items():
                dist.all_reduce(whole := values.to(device))
                self.sums[name] = whole.cpu()

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.sums["images"])

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return bool(self.sums["labelled"])

    def _mean(self, name: str) -> Any:
        return (self.sums[name] / self.sums["images"]).tolist()

    @property
    def top1(self) -> float:
        """Share of the images for which the label is predicted."""
        return self._mean("top1")

    @property
    def mass(self) -> list[float]:
        """Mean probability of the k largest classes together, for k = 1, 2, ... 20 (or C - 1)."""
        return self._mean("mass")

    def average(self, name: str) -> np.ndarray:
        """Mean over the images of each class (C, C): `prediction`, `rest` or `renormalized`; NaN without images."""
        counts = self.sums["images_of"].clone()
        counts[counts == 0] = torch.nan
        return (self.sums[name] / counts[:, None]).numpy()

    def of_classes(self, name: str) -> np.ndarray:
        """Mean over the images of each class (C): `entropy`, `rest_entropy` or `confidence_of`; NaN without images."""
        counts = self.sums["images_of"].clone()
        counts[counts == 0] = torch.nan
        return (self.sums[name] / counts).numpy()

    def accuracies(self) -> np.ndarray:
        """Share of each class's images for which it is predicted (C); NaN without images."""
        counts = self.sums["images_of"].numpy()
        return np.divide(
            self.sums["confusions"].numpy().diagonal(), counts, np.full(len(counts), np.nan), where=counts > 0
        )

    def numbers(self) -> dict[str, Any]:
        """The numbers over all images: entropies in nats, and with labels top1, top5, nll and ece."""
        found = {"images": self.images, "temperature": self.temperature, "confidence": self._mean("confidence")}
        if self.labelled:
            count, confidence, right = self.sums["calibration"]
            found |= {name: self._mean(name) for name in ("top1", "top5", "nll")}
            found["ece"] = float((confidence - right).abs().sum() / self.sums["images"])
            found["calibration"] = {
                "images": count.tolist(),
                "confidence": confidence.tolist(),
                "right": right.tolist(),
            }
        found |= {name: float(self.sums[name].sum() / self.sums["images"]) for name in ("entropy", "rest_entropy")}
        entropy, rest = self.sums["histograms"].tolist()
        return found | {
            "entropy_histogram": entropy,
            "rest_entropy_histogram": rest,
            "mass": self.mass,
            "knee": knee(self.mass),
        }


def modes(average: np.ndarray, most: int = 5) -> list[list[tuple[int, float]]]:
    """For each row of averages (C, C), the classes with at least twice the mean share, and these; at most so many."""
    found = []
    for line in np.nan_to_num(average):
        largest = np.argsort(-line, kind="stable")[:most]
        found.append([(int(i), float(line[i])) for i in largest if line[i] >= 2 * max(line.sum(), 1e-12) / len(line)])
    return found


def clusters(renormalized: np.ndarray) -> list[list[int]]:
    """Groups of classes that are confused with each other, largest first.

    How near two classes are is what each gives the other of its rest, in the mean of both directions. Groups are
    joined (average linkage) while the mean between their classes is at least 0.1, and twice that of an even spread.

    Args:
        renormalized: averages (C, C), as `Distribution.average` gives them.
    """
    share = np.nan_to_num(renormalized)
    share = (share + share.T) / 2
    np.fill_diagonal(share, 0)
    least = max(0.1, 2 / (len(share) - 1))
    tree = linkage(squareform(1 - share - np.eye(len(share)), checks=False), "average")
    number = fcluster(tree, 1 - least, "distance")
    found = [np.flatnonzero(number == each).tolist() for each in np.unique(number)]
    return sorted((each for each in found if len(each) > 1), key=len, reverse=True)
