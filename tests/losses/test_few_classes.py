"""The terms of gdkd and gdkd3 by thresholds (compiled code over few classes) are those of the groups by index."""

import math

import pytest
import torch

from hf_gdkd.losses import build_loss
from hf_gdkd.losses.few_classes import nested_terms
from hf_gdkd.losses.levels import two_level_terms

SAMPLES, CLASSES = 6, 7


def pictures():
    """Logits [6, 7] of student and teacher: usual, far apart, tied, and with classes that one or both rule out."""
    g = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, SAMPLES, CLASSES, generator=g, dtype=torch.float64)
    teacher[1] *= 300
    teacher[2] = teacher[2].round().clamp(-1, 1)
    teacher[3] = 0.0
    teacher[4, [0, 2, 3, 5]] = -math.inf
    student[4, 3] = -math.inf
    teacher[5, 1:] = torch.finfo(torch.float64).min
    return student, teacher


@pytest.mark.parametrize("dim", [-1, 0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k, top1", [(1, False), (3, False), (6, False), (2, True), (5, True)])
def test_terms_and_gradient_are_those_of_groups_by_index(k, top1, temperature, dim):
    """Of equal classes the first belong to the group."""
    student, teacher = pictures()
    index = teacher.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    groups = (index[..., :1], index[..., 1:]) if top1 else (index,)
    weights = torch.randn(2 + len(groups), SAMPLES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def weighed(terms):
        high, low, log_mass = terms
        assert not log_mass.requires_grad
        return torch.stack([high, *low]).detach(), log_mass, (weights * torch.stack([high, *low])).sum()

    by_index, by_threshold = student.clone().requires_grad_(), student.clone().requires_grad_()
    *expected, loss = weighed(two_level_terms(by_index, teacher, groups, temperature))
    loss.backward()
    pair = (logits.movedim(-1, dim) for logits in (by_threshold, teacher))
    *terms, loss = weighed(nested_terms(*pair, k, dim, temperature=temperature, top1=top1))
    loss.backward()
    torch.testing.assert_close([*terms, by_threshold.grad], [*expected, by_index.grad])


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_for_several_temperatures(dynamic):
    """The compiler makes a symbol of a number that it has seen change."""
    student, teacher = 3 * torch.randn(2, 5, CLASSES, generator=torch.Generator().manual_seed(0))
    torch.compiler.reset()
    for name, temperature in (("kd", 4.0), ("gdkd", 2.0), ("gdkd3", 3.0), ("gdkd", 1.0)):
        loss = build_loss(name, temperature=temperature)
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=dynamic)
        gradients = []
        for function in (loss, compiled):
            leaf = student.clone().requires_grad_()
            function(leaf, teacher).backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(*gradients)


def test_a_group_masked_by_a_finite_number():
    """Beside -1e9 the logarithm of the number of classes drowns; a gradient over all classes is 0 all the same."""
    student, teacher = torch.randn(2, 5, CLASSES, generator=torch.Generator().manual_seed(0))
    for masked in (teacher, student):
        masked[:, 3:] = -1e9
        leaf = student.clone().requires_grad_()
        high, low, _ = nested_terms(leaf, teacher, 3, -1, temperature=1.0)
        (high + sum(low)).sum().backward()
        torch.testing.assert_close(leaf.grad.sum(-1), torch.zeros(5), rtol=0, atol=1e-5)
