"""The classes in any dimension of the logits: the values are those of the same logits with the classes last."""

import pytest
import torch

from hf_gdkd.errors import InputError
from hf_gdkd.losses import LOSSES, build_loss, decoupled_kl
from hf_gdkd.losses.partition import adaptive_k, first, sets, target, top1_top_k, top_k

VARIANTS = [(name, {}) for name in LOSSES] + [
    ("gdkd", {"standardize": "both", "kl": "both"}),
    ("gdkd", {"threshold": 1.5, "gamma": 1.0}),
    ("dist", {"gradient_scaling": 2.0}),
]


def maps():
    """Logits (2, 7, 3, 4) and labels (2, 3, 4)."""
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 7, 3, 4, generator=g, dtype=torch.float64)
    return student, teacher, torch.randint(7, (2, 3, 4), generator=g)


@pytest.mark.parametrize("dim", [0, 1, 2, -2, -4])
@pytest.mark.parametrize("name, options", VARIANTS, ids=str)
def test_every_loss_takes_the_classes_in_any_dimension(name, options, dim):
    student, teacher, labels = maps()
    last, moved = (x.movedim(1, -1) for x in (student, teacher)), [x.movedim(1, dim) for x in (student, teacher)]
    expected = build_loss(name, reduction="none", **options).parts(*last, labels)
    parts = build_loss(name, dim=dim, reduction="none", **options).parts(*moved, labels)
    torch.testing.assert_close(parts, expected)


@pytest.mark.parametrize("name, options", VARIANTS, ids=str)
def test_gradients_of_maps_with_equal_logits_are_those_with_the_classes_last(name, options):
    student, teacher, labels = maps()
    teacher = teacher.round()
    gradients = []
    for dim in (1, -1):
        leaf = student.movedim(1, dim).contiguous().requires_grad_()
        build_loss(name, dim=dim, **options)(leaf, teacher.movedim(1, dim).contiguous(), labels).backward()
        gradients.append(leaf.grad.movedim(dim, 1))
    torch.testing.assert_close(*gradients)


def test_groups_and_terms():
    student, teacher, labels = maps()
    last = teacher.movedim(1, -1)
    for moved, expected in (
        (top_k(teacher, 3, dim=1), top_k(last, 3)),
        (top1_top_k(teacher, 3, dim=1), top1_top_k(last, 3)),
        (target(labels, teacher, dim=1), target(labels, last)),
        (sets([[0, 3], [1]], teacher, dim=1), sets([[0, 3], [1]], last)),
        (adaptive_k(teacher, 1.5, dim=1), adaptive_k(last, 1.5)),
        (first(teacher, labels, dim=1), first(last, labels)),
    ):
        torch.testing.assert_close(moved, expected)
    groups = top_k(last, 3)
    terms = decoupled_kl(student, teacher, groups, dim=1)
    torch.testing.assert_close(terms, decoupled_kl(student.movedim(1, -1), last, groups))


@pytest.mark.parametrize("dim, message", [(4, "dim is 4 for logits of 4 dimensions: expected -4 .. 3"), (-5, "-5")])
def test_a_dimension_that_is_not_there(dim, message):
    with pytest.raises(InputError, match=message):
        build_loss("kd", dim=dim)(*maps())


def test_bad_dimensions_and_shapes():
    for dim in (1.0, "1", True):
        with pytest.raises(InputError, match=r"dim is .*: expected the number of the class dimension"):
            build_loss("gdkd", dim=dim)
    student, teacher, _ = maps()
    with pytest.raises(InputError, match="teacher has 6 classes, student 7"):
        build_loss("kd", dim=1)(student, teacher[:, :6])
    with pytest.raises(InputError, match="labels are soft"):
        build_loss("dkd", dim=1)(student, teacher, teacher)
    with pytest.raises(InputError, match="takes no option 'dim'"):
        build_loss("rkd", dim=1)
