"""Losses on hidden features: attention transfer, relational KD and contrastive representation distillation."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from .base import DistillationLoss, positive, weight, whole


class Features(NamedTuple):
    """Holds what a loss on features sees of a model; `training.feature_hooks.FeatureHooks` reads it."""

    stages: Sequence[Tensor]  # [N, C, H, W] each, from shallow to deep
    pooled: Tensor | None  # [N, D], what enters the classifier head


class FeatureLoss(DistillationLoss):
    """Compares hidden features instead of logits: the base of such losses; `parts` and `forward` take `Features`.

    Some learn a projection, which trains with the student and is thrown away afterwards: call `build` with one
    example before the optimizer is made, and pass the optimizer the loss's `parameters()` too.
    """

    scales_gradients = False
    taps = "stages"  # where `training.feature_hooks.FeatureHooks` looks, unless layers are named; or "blocks"

    def build(self, student: Features, teacher: Features) -> None:
        """Make the projections for features of these shapes; InputError where features that it needs are missing."""
        raise NotImplementedError

    def parts(self, student: Features, teacher: Features, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The unweighted terms by name, computed in float32 (float64 for float64 features).

        Args:
            student: the student's features.
            teacher: the teacher's; constants.
            labels: [N] int64, for the losses that use them.

        Returns:
            One value per sample, [N]; one value per batch, [], for a `per_batch` loss.
        """
        student, teacher = _prepared(student), _prepared(teacher, constant=True)
        device = (student.stages[0] if student.stages else student.pooled).device
        with torch.autocast(device.type, enabled=False):
            return self.compute(student, teacher, labels)

    def compute(self, student: Features, teacher: Features, labels: Tensor | None) -> dict[str, Tensor]:
        raise NotImplementedError


class StageLoss(FeatureLoss):
    """Compares stages of both models, in one part with one value per sample: the base of such losses.

    Stages are paired from the deepest up; what only one of the models has is left out.

    Args:
        student_layers: modules of the student that take the place of its stages, by name, from shallow to deep.
        teacher_layers: likewise of the teacher.
        reduction: "mean", "sum" or "none" over the samples.
    """

    part: str

    def __init__(
        self,
        *,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        self.student_layers, self.teacher_layers = student_layers, teacher_layers
        self.weights = {self.part: 1.0}


class ATLoss(StageLoss):
    """Makes the student attend where the teacher does: the squared difference of attention maps, averaged, by stage.

    The attention of a map [N, C, H, W] is the mean of its squares over the channels, [N, H * W], at unit length. Maps
    of different sizes are averaged down to the smaller first. Published weight: 1000.

    Arguments: see `StageLoss`.

    Reference:
        Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv 1612.03928, Eq. 2 with p = 2.

    Example:
        >>> student = Features([torch.randn(4, 8, 6, 6)], torch.randn(4, 16))
        >>> teacher = Features([torch.randn(4, 12, 6, 6)], torch.randn(4, 24))
        >>> loss = ATLoss()
        >>> loss.build(student, teacher)
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    part = "at"

    def build(self, student: Features, teacher: Features) -> None:
        paired(student, teacher)

    def compute(self, student: Features, teacher: Features, labels: Tensor | None) -> dict[str, Tensor]:
        gaps = [attention(s) - attention(t) for s, t in (same_size(s, t) for s, t in paired(student, teacher))]
        return {"at": sum(gap.square().mean(1) for gap in gaps)}


class RKDLoss(FeatureLoss):
    """Teaches the distances between the samples of a batch, and the angles of their triplets (relational KD).

    From the pooled features [N, D], which may be of different sizes: pairwise distances over their mean, and the
    cosines at the first of three samples, each under a Huber loss averaged over all pairs and triplets, of one
    process's micro-batch. Memory grows with N**2 * (N + D).

    Args:
        distance_weight: weight of `rkd_distance`.
        angle_weight: weight of `rkd_angle`.
        reduction: changes nothing, the loss is one value per batch.

    Reference:
        Park, Kim, Lu and Cho, "Relational Knowledge Distillation", arXiv 1904.05068.

    Example:
        >>> student = Features([torch.randn(4, 8, 6, 6)], torch.randn(4, 16))
        >>> teacher = Features([torch.randn(4, 12, 6, 6)], torch.randn(4, 24))
        >>> loss = RKDLoss()
        >>> loss.build(student, teacher)
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    per_batch = True

    def __init__(self, *, distance_weight: float = 25.0, angle_weight: float = 50.0, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.distance_weight, self.angle_weight = distance_weight, angle_weight
        self.weights = {
            "rkd_distance": weight("distance_weight", distance_weight),
            "rkd_angle": weight("angle_weight", angle_weight),
        }

    def build(self, student: Features, teacher: Features) -> None:
        pooled(student, teacher)

    def compute(self, student: Features, teacher: Features, labels: Tensor | None) -> dict[str, Tensor]:
        (distance_s, angle_s), (distance_t, angle_t) = (relations(x) for x in pooled(student, teacher))
        return {
            "rkd_distance": F.smooth_l1_loss(distance_s, distance_t),
            "rkd_angle": F.smooth_l1_loss(angle_s, angle_t),
        }


class CRDLoss(FeatureLoss):
    """Makes the student's and the teacher's features of one image find each other in the batch (CRD, contrastive).

    Both pooled features [N, D] are embedded by a learned linear layer, at unit length. The cosine of a student and a
    teacher embedding over the temperature is a logit; the cross-entropy of picking the same sample is taken for the
    student among the teachers, and for the teacher among the students, and added. With labels [N], other samples of
    the same class are no candidates. Published weight: 0.8.

    The published loss contrasts each sample with 16,384 others from a memory of the whole data set's embeddings,
    by noise-contrastive estimation. Here the negatives are the other samples of one process's micro-batch (InfoNCE):
    that needs no identities of samples, and no memory of N x 256 numbers that every process and checkpoint must hold.
    Its values are not comparable with the published ones, and it wants large batches.

    Args:
        temperature: > 0.
        embedding_size: of the space in which the two are compared.
        reduction: changes nothing, the loss is one value per batch.

    Reference:
        Tian, Krishnan and Isola, "Contrastive Representation Distillation", arXiv 1910.10699; InfoNCE: van den Oord,
        Li and Vinyals, arXiv 1807.03748, Eq. 4.

    Example:
        >>> student = Features([torch.randn(4, 8, 6, 6)], torch.randn(4, 16))
        >>> teacher = Features([torch.randn(4, 12, 6, 6)], torch.randn(4, 24))
        >>> loss = CRDLoss()
        >>> loss.build(student, teacher)
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    per_batch = True

    def __init__(self, *, temperature: float = 0.07, embedding_size: int = 128, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.temperature = positive("temperature", temperature)
        self.embedding_size = whole("embedding_size", embedding_size)
        self.weights = {"crd": 1.0}

    def build(self, student: Features, teacher: Features) -> None:
        self.embed_student, self.embed_teacher = (
            nn.Linear(x.shape[1], self.embedding_size) for x in pooled(student, teacher)
        )

    def compute(self, student: Features, teacher: Features, labels: Tensor | None) -> dict[str, Tensor]:
        s, t = pooled(student, teacher)
        s, t = F.normalize(self.embed_student(s)), F.normalize(self.embed_teacher(t))
        logits = s @ t.T / self.temperature
        if labels is not None and labels.ndim == 1:
            same_class = labels.unsqueeze(0) == labels.unsqueeze(1)
            logits = logits.masked_fill(same_class.fill_diagonal_(False), -torch.inf)
        own = torch.arange(len(s), device=s.device)
        return {"crd": F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)}


def attention(stage: Tensor) -> Tensor:
    """Where a map [N, C, H, W] is strong: the mean of its squares over the channels, at unit length, [N, H * W]."""
    return F.normalize(stage.square().mean(1).flatten(1))


def relations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of samples [N, D]: their distances over the mean distance of those apart [N, N], and cosines [N, N, N].

    Entry (i, j, k) of the latter is the cosine at i of the angle between j and k; 0 where two samples coincide.
    """
    difference = x.unsqueeze(0) - x.unsqueeze(1)
    distance = torch.linalg.vector_norm(difference, dim=-1)
    safe = distance.masked_fill(distance == 0, 1)
    direction = difference / safe.unsqueeze(-1)
    mean = distance.sum() / (distance > 0).sum().clamp(min=1)
    return distance / mean.where(mean > 0, 1), direction @ direction.mT


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [N, C, H, W], averaged down to the smaller height and width."""
    size = [min(sides) for sides in zip(a.shape[2:], b.shape[2:], strict=True)]
    a, b = (x if list(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size) for x in (a, b))
    return a, b


def paired(student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
    """Stages of both, from shallow to deep, paired from the deepest up; what only one of them has is left out."""
    for name, features in (("student", student), ("teacher", teacher)):
        if not features.stages:
            raise InputError(
                f"no feature maps were found in the {name}: name its modules with {name}_layers, or choose a loss on "
                "logits or on pooled features (rkd, crd)."
            )
    count = min(len(student.stages), len(teacher.stages))
    return list(zip(student.stages[-count:], teacher.stages[-count:], strict=True))


def pooled(student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
    """The pooled features of both."""
    for name, features in (("student", student), ("teacher", teacher)):
        if features.pooled is None:
            raise InputError(f"the {name} has no linear classifier head to take pooled features from: choose another.")
    return student.pooled, teacher.pooled


def _prepared(features: Features, *, constant: bool = False) -> Features:
    """In the dtype to compute in; constants pass no gradient on."""

    def prepared(x: Tensor | None) -> Tensor | None:
        return x if x is None else (x.detach() if constant else x).to(torch.promote_types(x.dtype, torch.float32))

    return Features([prepared(x) for x in features.stages], prepared(features.pooled))
