"""ViTKD against its formula, written with loops: what is imitated, and what is completed from other tokens."""

import pytest
import torch
from refusals import refusal
from torch.nn import functional as F

from hf_gdkd.losses import Features, build_loss

SIDE = 5


def tokens(width, n=3, seed=0, depth=3, side=SIDE):
    g = torch.Generator().manual_seed(seed)
    return Features([torch.randn(n, width, side, side, generator=g, dtype=torch.float64) for _ in range(depth)], None)


def built(student, teacher, **options):
    torch.manual_seed(3)
    loss = build_loss("vitkd", **options)
    loss.build(student, teacher)
    return loss.double()


def seeded(loss, *features):
    torch.manual_seed(7)
    return loss.parts(*features)


def linear(layer, x):
    return torch.einsum("tc,nchw->nthw", layer.weight[:, :, 0, 0], x) + layer.bias[:, None, None]


@pytest.mark.parametrize("mask_ratio", [0.5, 0.3])
def test_the_formula(mask_ratio):
    student, teacher = tokens(4), tokens(6, seed=1)
    loss = built(student, teacher, mask_ratio=mask_ratio, reduction="none")
    torch.nn.init.normal_(loss.hidden_token)
    parts = seeded(loss, student, teacher)
    mimic = [(linear(loss.align[i], student.stages[i]) - teacher.stages[i]).square().sum((1, 2, 3)) for i in (0, 1)]
    torch.testing.assert_close(parts["mimic"], sum(mimic))

    torch.manual_seed(7)
    order = torch.rand(3, SIDE * SIDE).argsort(1)  # the published way to keep the first of a random order
    last, target = linear(loss.align[2], student.stages[2]), teacher.stages[2]
    for i in range(3):
        hidden = order[i, int(SIDE * SIDE * (1 - mask_ratio)) :].tolist()
        assert len(hidden) == SIDE * SIDE - int(SIDE * SIDE * (1 - mask_ratio))
        given = last[i : i + 1].clone()
        for place in hidden:
            given[0, :, place // SIDE, place % SIDE] = loss.hidden_token[0, :, 0, 0]
        first, _, second = loss.complete
        completed = F.conv2d(given, first.weight, first.bias, padding=1).relu()
        completed = F.conv2d(completed, second.weight, second.bias, padding=1)
        gaps = [(completed[0] - target[i])[:, place // SIDE, place % SIDE].square().sum() for place in hidden]
        torch.testing.assert_close(parts["generate"][i], sum(gaps) / mask_ratio)
    torch.testing.assert_close(loss.weigh(parts), 3e-5 * parts["mimic"] + 3e-6 * parts["generate"])


def test_what_learns_and_the_gradient():
    """The student's three places and every module beside it; nothing of the teacher; the same widths need no layer."""
    student, teacher = tokens(3, n=2, side=3), tokens(4, n=2, side=3, seed=1)
    loss = built(student, teacher, alpha=1.0, beta=1.0)
    leaves = [x.requires_grad_() for x in student.stages]
    targets = [x.requires_grad_() for x in teacher.stages]
    assert torch.autograd.gradcheck(lambda *x: loss.weigh(seeded(loss, Features(x, None), teacher)).sum(), leaves)
    loss(student, teacher).backward()
    assert all(x.grad.abs().max() > 0 for x in (*leaves, *loss.parameters()))
    assert all(x.grad is None for x in targets)
    assert not list(built(teacher, teacher).align.parameters())
    halves = [Features([x.detach().bfloat16() for x in each.stages], None) for each in (student, teacher)]
    exact = loss.weigh(seeded(loss, *(Features([x.double() for x in half.stages], None) for half in halves))).mean()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss.weigh(seeded(loss.float(), *halves)).mean()
    torch.testing.assert_close(value, exact.float(), rtol=1e-4, atol=0)


def test_masks_are_drawn_for_each_sample_and_anew():
    loss = build_loss("vitkd", mask_ratio=0.25)
    first, second = loss._hidden(torch.zeros(50, 1, 4, 4)), loss._hidden(torch.zeros(50, 1, 4, 4))
    assert (first.sum((1, 2, 3)) == 4).all()
    assert not torch.equal(first, second) and len(first.flatten(1).unique(dim=0)) > 40
    assert (first.float().mean(0) > 0).all()


def test_what_is_refused():
    refusal(lambda: built(tokens(4), tokens(4, side=6)), "the student has 5 x 5 of them and the teacher 6 x 6")
    for bad in (0, 1, -0.5, float("nan")):
        refusal(lambda bad=bad: build_loss("vitkd", mask_ratio=bad), f"mask_ratio is {bad}: expected")
