"""CWD against its formula, written with loops in float64, on logits and on features."""

import math

import pytest
import torch
from refusals import refusal
from torch import nn

from hf_gdkd.losses import CWDFeaturesLoss, CWDLoss, Features, build_loss


def by_loops(student, teacher, temperature):
    """One value an image: T**2 / C * sum over channels and positions of q log(q / p)."""
    values = []
    for s, t in zip(student.flatten(2).tolist(), teacher.flatten(2).tolist(), strict=True):
        total = 0.0
        for own, target in zip(s, t, strict=True):
            p, q = ([math.exp(x / temperature) for x in row] for row in (own, target))
            p, q = [x / math.fsum(p) for x in p], [x / math.fsum(q) for x in q]
            total += math.fsum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
        values.append(temperature**2 * total / len(s))
    return torch.tensor(values, dtype=torch.float64)


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_formula_on_logits(temperature):
    student, teacher = maps(3, 5, 4, 6), maps(3, 5, 4, 6, seed=1)
    loss = CWDLoss(temperature=temperature, dim=1, reduction="none")
    torch.testing.assert_close(loss(student, teacher), by_loops(student, teacher, temperature))


def test_gradient_and_invariances():
    """0 where the maps agree up to a constant a channel; gradcheck; large logits are finite in float32."""
    student, teacher = maps(2, 3, 3, 4).requires_grad_(), maps(2, 3, 3, 4, seed=1)
    loss = CWDLoss(dim=1)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), student)
    torch.testing.assert_close(loss(teacher + maps(2, 3, 1, 1), teacher), torch.zeros((), dtype=torch.float64))
    large = (1000 * student).float().detach().requires_grad_()
    loss(large, teacher.float()).backward()
    assert large.grad.isfinite().all()


def test_features_of_other_channels_and_size():
    """The last stages, the student's through its projection, the teacher's as large as the student's."""
    student = Features([maps(2, 9, 8, 8), maps(2, 3, 4, 4)], None)
    teacher = Features([maps(2, 5, 8, 8, seed=1)], None)
    loss = CWDFeaturesLoss(reduction="none")
    loss.build(student, teacher)
    loss.double()
    own = torch.einsum("tc,nchw->nthw", loss.projection.weight[:, :, 0, 0], student.stages[1])
    target = nn.functional.interpolate(teacher.stages[0], size=(4, 4), mode="bilinear")
    torch.testing.assert_close(loss(student, teacher), by_loops(own, target, 4.0))


def test_classes_of_whole_images_are_refused():
    refusal(lambda: build_loss("cwd")(torch.zeros(2, 3), torch.zeros(2, 3)), "cwd compares maps", "2 dimensions")
