"""What the losses of other papers are, by identities with those of this one and by loops; scaled gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from hf_gdkd.losses import LOSSES, build_loss


def sample(n=40, classes=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, n, classes, generator=g, dtype=torch.float64)
    return student, teacher, torch.randint(classes, (n,), generator=g)


def parts(name, *inputs, **options):
    return build_loss(name, reduction="none", **options).parts(*inputs)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_nkd_is_the_divergence_of_dkd_and_the_entropy_of_the_teacher(temperature):
    student, teacher, labels = sample()
    got = parts("nkd", student, teacher, labels, temperature=temperature)
    at_equality = parts("nkd", teacher, teacher, labels, temperature=temperature)["non_target"]
    nckd = parts("dkd", student, teacher, labels, temperature=temperature)["nckd"]
    torch.testing.assert_close(got["non_target"] - at_equality, nckd)
    p, q = (F.one_hot(labels, 7) * x.softmax(-1) for x in (teacher, student))
    torch.testing.assert_close(got["target"], -p.sum(-1) * q.sum(-1).log())


def test_nkd_takes_the_largest_class_of_a_soft_label_in_any_dimension():
    student, teacher, labels = sample()
    soft = 0.7 * F.one_hot(labels, 7).double() + 0.3 / 7
    expected = build_loss("nkd")(student, teacher, labels)
    torch.testing.assert_close(build_loss("nkd")(student, teacher, soft), expected)
    torch.testing.assert_close(build_loss("nkd", dim=0)(student.T, teacher.T, soft.T), expected)


def test_ttm_is_kd_where_both_temperatures_are_1_and_wttm_weighs_each_sample():
    student, teacher, _ = sample()
    torch.testing.assert_close(
        parts("ttm", student, teacher, temperature=1.0)["ttm"], parts("kd", student, teacher)["kd"]
    )
    ttm, wttm = (parts(name, student, teacher, temperature=4.0)[name] for name in ("ttm", "wttm"))
    torch.testing.assert_close(wttm, ttm * teacher.softmax(-1).pow(0.25).sum(-1))
    torch.testing.assert_close(ttm, parts("kd", 4 * student, teacher, temperature=4.0)["kd"] / 16)


def test_wttm_of_a_sure_teacher_is_finite():
    student, teacher = torch.zeros(1, 3), torch.tensor([[0.0, 900.0, 0.0]])  # probabilities that underflow
    torch.testing.assert_close(
        build_loss("wttm")(student, teacher), build_loss("ttm", temperature=5.0)(student, teacher)
    )


def test_luminet_knows_no_offset_or_scale_of_a_class_and_a_single_sample_costs_nothing():
    student, teacher, _ = sample()
    loss = build_loss("luminet", temperature=2.0, alpha=3.0)
    by_class = torch.linspace(50, 99, 7, dtype=torch.float64)
    moved = by_class * student - by_class
    assert loss(student, teacher) > 1
    torch.testing.assert_close(loss(moved, teacher), loss(student, teacher), rtol=1e-4, atol=0)
    assert loss(student[:1], teacher[:1]) == 0
    assert loss.couples_samples and loss.weights == {"luminet": 9.0}


@pytest.mark.parametrize("standardize", ["none", "global"])
def test_rld_is_dkd_where_the_teacher_is_right(standardize):
    student, teacher, _ = sample()
    options = {"temperature": 2.0, "standardize": standardize}
    got = parts("rld", student, teacher, teacher.argmax(-1), **options)
    dkd = parts("dkd", student, teacher, teacher.argmax(-1), **options)
    torch.testing.assert_close((got["scd"], got["mcd"]), (dkd["tckd"], dkd["nckd"]))


def test_rld_does_not_teach_what_the_teacher_ranks_above_the_label():
    """By loops; the label is to have the mass of the teacher's top class; one sample has no class below the label."""
    student, teacher, labels = sample()
    labels[0] = teacher[0].argmin()
    got = parts("rld", student.requires_grad_(), teacher, labels, temperature=2.0, alpha_temperature=3.0)
    for i, label in enumerate(labels.tolist()):
        m, s = (teacher[i] / 3).softmax(-1).max().item(), (student[i] / 3).softmax(-1)[label].item()
        scd = 9 * (m * math.log(m / s) + (1 - m) * math.log((1 - m) / (1 - s)))
        assert got["scd"][i].item() == pytest.approx(scd, rel=1e-9)
        below = [j for j in range(7) if teacher[i, j] < teacher[i, label]]
        p, q = ((x[i, below] / 2).softmax(-1) for x in (teacher, student))
        assert got["mcd"][i].item() == pytest.approx(4 * (p * (p / q).log()).sum().item(), rel=1e-9, abs=1e-12)
    (gradient,) = torch.autograd.grad(got["mcd"].sum(), student)
    assert got["mcd"][0] == 0 and not gradient[0].any()
    assert not gradient[teacher >= teacher.gather(1, labels[:, None])].any()


def test_skd_with_a_number_is_standardized_kd():
    student, teacher, _ = sample(classes=9)
    size = 2.0 * math.sqrt(9 / 8)  # by the population's standard deviation instead of the sample's
    skd = parts("skd", student, teacher, temperature=4.0, multiplier=2.0)["skd"]
    kd = parts("kd", student, teacher, temperature=4.0 / size, standardize="global")["kd"]
    torch.testing.assert_close(skd, kd * size**2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("multiplier", [None, 2.0])
def test_skd_knows_no_size_of_the_students_logits_also_where_it_has_none(multiplier):
    student, teacher, _ = sample()
    loss = build_loss("skd", multiplier=multiplier)
    torch.testing.assert_close(loss(9 * student, teacher), loss(student, teacher), rtol=1e-6, atol=0)
    flat = torch.zeros(4, 7, requires_grad=True)  # a head that starts at zero
    loss(flat, teacher[:4].float()).backward()
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"cwd"}))
def test_scaled_gradients_are_those_of_the_loss_times_the_published_factor(name):
    student, teacher, labels = sample(n=6)
    leaf = student.requires_grad_()
    plain, scaled = build_loss(name), build_loss(name, gradient_scaling=2.5)
    value = scaled(leaf, teacher, labels)
    assert torch.equal(value, plain(leaf, teacher, labels))
    expected, got = (torch.autograd.grad(loss(leaf, teacher, labels), leaf)[0] for loss in (plain, scaled))
    confidence = (teacher / getattr(plain, "temperature", 1.0)).softmax(-1).amax(-1).tolist()
    for i, c in enumerate(confidence):
        factor = 2.5 / (1 + math.exp(-0.6 * (c - sum(confidence) / 6)))
        for j in range(7):
            once = 1 if j == labels[i] else factor
            assert got[i, j].item() == pytest.approx(once * expected[i, j].item(), rel=1e-9, abs=1e-15)
    assert scaled.needs_labels and scaled.couples_samples and "gradient_scaling=2.5" in repr(scaled)
    assert "gradient_scaling" not in repr(plain)
