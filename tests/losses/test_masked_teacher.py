"""A teacher that gives some classes a logit of minus infinity: no loss is NaN, and an empty group costs 0."""

import math

import pytest
import torch

from hf_gdkd.losses import build_loss, decoupled_kl
from hf_gdkd.losses.kd import standardized
from hf_gdkd.losses.partition import top_k

CLASSES = 9
LOSSES = [
    ("kd", {}),
    ("kd", {"standardize": "global"}),
    ("dkd", {}),
    ("dkd", {"partition": "top1", "standardize": "global"}),
    ("dist", {}),
    ("mlkd", {"standardize": "global"}),
    ("gdkd3", {"k": 4}),
    ("gdkd3", {"k": 4, "standardize": "global"}),
    *(("gdkd", {"k": 4, "standardize": one}) for one in ("none", "global", "both", "other")),
    ("gdkd", {"k": 4, "strategy": "worst"}),
    ("gdkd", {"threshold": 1.5}),
    ("gdkd", {"threshold": 1.2, "k": 3, "standardize": "both"}),
    ("gdkd", {"class_k": [4] * CLASSES}),
    ("gdkd", {"k": 4, "coupled": True, "gamma": 1.0}),
    *((name, {}) for name in ("nkd", "ttm", "wttm", "luminet", "rld", "skd")),
    ("rld", {"standardize": "global"}),
    ("skd", {"multiplier": 2.0}),
    ("kd", {"gradient_scaling": 2.0}),
]

GROUPED = [  # a variance of the lowest numbers is not finite
    (name, options)
    for name, options in LOSSES
    if name in ("dkd", "gdkd", "gdkd3") and options.get("standardize", "none") == "none"
]


def sample(finite):
    """Logits of a student and of a teacher with so many finite classes, and labels."""
    g = torch.Generator().manual_seed(finite)
    student, teacher = torch.randn(2, 6, CLASSES, generator=g, dtype=torch.float64)
    for row in range(6):
        teacher[row, torch.randperm(CLASSES, generator=g)[finite:]] = -math.inf
    return student.requires_grad_(), teacher, torch.randint(CLASSES, (6,), generator=g)


@pytest.mark.parametrize("finite", range(1, 6))
@pytest.mark.parametrize("name, options", LOSSES, ids=str)
def test_no_loss_is_nan_however_few_classes_are_finite(name, options, finite):
    student, teacher, labels = sample(finite)
    value = build_loss(name, **options)(student, teacher, labels)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("finite", range(1, 6))
@pytest.mark.parametrize("name, options", GROUPED, ids=str)
def test_groups_that_a_finite_number_rules_out(name, options, finite):
    """Some models mask by -1e9, or by the lowest number, two of which make minus infinity; beside both a sum drowns."""
    student, teacher, labels = (x.float() if x.is_floating_point() else x for x in sample(finite))
    for lowest in (-1e9, torch.finfo(torch.float32).min):
        masked = teacher.clamp(min=lowest)
        value = build_loss(name, **options, reduction="sum")(student, masked, labels)
        (gradient,) = torch.autograd.grad(value, student, retain_graph=True)
        (plain,) = torch.autograd.grad(value, student, create_graph=True)  # operation by operation
        assert value.isfinite() and value >= 0
        torch.testing.assert_close(gradient, plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient.sum(-1), torch.zeros(6), rtol=0, atol=1e-5)


def test_gradient_where_both_models_rule_out_the_rest():
    student, teacher, _ = sample(4)
    student = student.detach().masked_fill(teacher.isneginf(), -math.inf).requires_grad_()
    loss = build_loss("gdkd", k=4)(student, teacher)
    for create_graph in (False, True):
        (gradient,) = torch.autograd.grad(loss, student, create_graph=create_graph, retain_graph=True)
        assert gradient.isfinite().all() and not gradient[teacher.isneginf()].any()


@pytest.mark.parametrize("kl", ["forward", "reverse", "both"])
@pytest.mark.parametrize("by", [{"k": 4}, {"class_k": [4] * CLASSES}], ids=str)
def test_a_group_without_a_finite_class_costs_0(kl, by):
    """With exactly k finite classes the rest is empty: its term is 0, and the two others are the limit's."""
    student, teacher, labels = sample(4)
    parts = build_loss("gdkd", kl=kl, **by).parts(student, teacher, labels)
    limit = build_loss("gdkd", kl=kl, **by).parts(student, teacher.clamp(min=-1e5), labels)
    assert torch.equal(parts["low_other"], torch.zeros(6, dtype=torch.float64))
    for name in ("high", "low_top"):
        torch.testing.assert_close(parts[name], limit[name])
    (gradient,) = torch.autograd.grad(sum(part.sum() for part in parts.values()), student)
    assert gradient.isfinite().all()


def test_nkd_of_a_teacher_that_knows_the_label_alone():
    student, teacher, _ = sample(1)
    parts = build_loss("nkd").parts(student, teacher, teacher.argmax(-1))
    (gradient,) = torch.autograd.grad(sum(part.sum() for part in parts.values()), student)
    assert not parts["non_target"].any() and parts["target"].all() and gradient.isfinite().all()


def test_chain_rule_with_an_empty_group():
    student, teacher, _ = sample(4)
    terms = decoupled_kl(student, teacher, top_k(teacher, 4))
    assert terms.mass[:, 1].eq(0).all()
    kd = build_loss("kd", reduction="none")(student, teacher)
    torch.testing.assert_close(terms.high + (terms.mass * terms.low).sum(-1), kd)


def test_standardization_is_that_of_the_finite_classes():
    logits = torch.tensor([[1.0, -math.inf, 3.0, 8.0], [-math.inf, 2.0, -math.inf, -math.inf]])
    got = standardized(logits)
    torch.testing.assert_close(got[0, [0, 2, 3]], standardized(logits[0, [0, 2, 3]]))
    assert got[1, 1] == 0 and torch.equal(got.isneginf(), logits.isneginf())
