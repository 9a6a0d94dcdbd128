"""Scales a loss's gradient sample by sample, by how sure the teacher is, and leaves its value (GKD)."""

from torch import Tensor

from . import partition as partitions

STEEPNESS = 0.6


def scaled_gradient(
    student: Tensor, teacher: Tensor, labels: Tensor | None, strength: float, temperature: float = 1.0
) -> Tensor:
    """The student's logits as they are; their gradient is larger where the teacher is surer than on average.

    It is multiplied by `strength` / (1 + exp(-0.6 (c - mean of c))), c being the teacher's largest probability in the
    sample and the mean over the batch, for every class but the label, whose gradient stays as it is.

    Args:
        student: logits [..., C].
        teacher: logits [..., C]; constants.
        labels: [...] int64.
        strength: 2 leaves the gradient of a sample of average confidence as it is.
        temperature: of the teacher's probabilities.

    Raises:
        InputError: labels are missing, soft or out of range.

    Reference:
        "Gradient Scaling Knowledge Distillation"; the code is github.com/snw2021/GKD.
    """
    (label,) = partitions.target(labels, teacher)
    confidence = (teacher / temperature).softmax(-1).amax(-1, keepdim=True)
    factor = strength * (STEEPNESS * (confidence - confidence.mean())).sigmoid()
    factor = factor.expand_as(student).scatter(-1, label, 1.0)
    constant = student.detach()
    return constant + factor * (student - constant)
