"""The variants of GDKD that its authors published: k by sample, by class, coupled weights, DIST's intra-class term."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gdkd.losses import build_loss
from hf_gdkd.losses.partition import adaptive_k, first, top_k

random_case = settings(max_examples=15, deadline=None)
CLASSES = 9
CLASS_K = [1, 8, 3, 5, 2, 8, 1, 4, 6]
PARTITIONS = [{"k": 1}, {"k": 4}, {"threshold": 1.5}, {"threshold": 3.0, "k": 3}, {"class_k": CLASS_K}]
SETTINGS = [{}, {"kl": "both", "strategy": "worst"}, {"standardize": "global"}, {"standardize": "both"},
            {"standardize": "other"}]  # fmt: skip


def sample(seed, *shape, scale=3.0):
    g = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, *shape, generator=g, dtype=torch.float64)
    return student, teacher, torch.randint(shape[-1], shape[:-1], generator=g)


def published_k(logits, threshold):
    """By a loop over one sample's probabilities, smallest first."""
    ascending = sorted(logits.softmax(-1).tolist())
    for i, p in enumerate(ascending):
        if p / (sum(ascending[: i + 1]) / (i + 1)) >= threshold:
            return len(ascending) - i
    return 1


@random_case
@given(seed=st.integers(0, 2**16), classes=st.integers(2, 40), threshold=st.floats(1.01, 20), scale=st.floats(0.1, 9))
def test_adaptive_k_is_the_published_rule_for_any_number_of_classes(seed, classes, threshold, scale):
    _, teacher, _ = sample(seed, 20, classes, scale=scale)
    k = adaptive_k(teacher, threshold)
    assert k.tolist() == [published_k(row, threshold) for row in teacher]
    assert k.min() >= 1 and k.max() <= classes - 1


def test_adaptive_k_of_clear_cases():
    """Equal classes: none stands out. Three far above the rest: those three. One hot: that one."""
    logits = torch.tensor([[0.0] * 6, [9.0, 9, 0, 9, 0, 0], [0.0, 0, 0, 1e4, 0, 0], [-1e4, 9, 9, 9, 9, 9]])
    assert adaptive_k(logits, 2.1).tolist() == [1, 3, 1, 1]
    assert adaptive_k(logits, 1.9).tolist() == [1, 3, 1, 5]


@pytest.mark.parametrize("strategy", ["best", "worst"])
def test_first_takes_each_samples_own_number(strategy):
    _, teacher, _ = sample(0, 4, 5, CLASSES)
    k = torch.randint(1, CLASSES, (4, 5))
    mask = first(teacher, k, strategy=strategy)
    assert torch.equal(mask.sum(-1), k)
    for row, number, chosen in zip(teacher.flatten(0, 1), k.flatten(), mask.flatten(0, 1), strict=True):
        (index,) = top_k(row, int(number), strategy=strategy)
        assert set(index.tolist()) == set(chosen.nonzero().flatten().tolist())
    assert first(torch.zeros(3, CLASSES), torch.tensor([1, 4, 8])).sum(-1).tolist() == [1, 4, 8]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("temperature, threshold", [(1.0, 3.0), (4.0, 1.3)])
def test_k_by_sample_and_by_class_is_gdkd_at_that_k(options, temperature, threshold):
    """Sample by sample, every part; also where all samples choose the same k."""
    student, teacher, labels = sample(1, 40, CLASSES)
    options = options | {"temperature": temperature, "w0": 0.3, "w1": 0.7, "w2": 2.0, "reduction": "none"}
    chosen = adaptive_k(teacher / temperature, threshold)
    assert len(chosen.unique()) >= 3
    for variant, k in (
        ({"threshold": threshold}, chosen),
        ({"threshold": threshold, "k": 2}, chosen.clamp(max=2)),
        ({"class_k": CLASS_K}, torch.tensor(CLASS_K)[labels]),
        ({"class_k": [3] * CLASSES}, torch.full_like(labels, 3)),
    ):
        loss = build_loss("gdkd", **options, **variant)
        value, parts = loss(student, teacher, labels), loss.parts(student, teacher, labels)
        for one in k.unique().tolist():
            rows = k == one
            plain = build_loss("gdkd", k=one, **options)
            torch.testing.assert_close(value[rows], plain(student[rows], teacher[rows]))
            expected = plain.parts(student[rows], teacher[rows])
            torch.testing.assert_close({name: part[rows] for name, part in parts.items()}, expected)


@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
@pytest.mark.parametrize("standardize", ["none", "global"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_coupled_weights_of_1_are_plain_kd(partition, standardize, temperature):
    student, teacher, labels = sample(2, 4, 5, CLASSES)
    options = {"temperature": temperature, "standardize": standardize, "reduction": "none"}
    coupled = build_loss("gdkd", **options, **partition, w0=1.0, w1=1.0, w2=1.0, coupled=True)
    torch.testing.assert_close(coupled(student, teacher, labels), build_loss("kd", **options)(student, teacher))


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
def test_closed_form_gradient(partition, coupled):
    """dL/dz_i = T * (w0 * (p_i^S - b_g^T * p_{i|g}^S) + w_g * m_g * (p_{i|g}^S - p_{i|g}^T)), m_g = b_g^T or 1."""
    student, teacher, labels = sample(3, 30, CLASSES)
    t, (w0, w1, w2) = 2.0, (0.5, 1.5, 3.0)
    loss = build_loss("gdkd", temperature=t, w0=w0, w1=w1, w2=w2, coupled=coupled, reduction="sum", **partition)
    (gradient,) = torch.autograd.grad(loss(student.requires_grad_(), teacher, labels), student)
    p_s, p_t = (student.detach() / t).softmax(-1), (teacher / t).softmax(-1)
    if "class_k" in partition:
        k = [CLASS_K[label] for label in labels]
    elif "threshold" in partition:
        k = [min(published_k(row / t, partition["threshold"]), partition.get("k", CLASSES)) for row in teacher]
    else:
        k = [partition["k"]] * len(labels)
    for i in range(len(labels)):
        order = teacher[i].argsort(descending=True)
        for group, w in ((order[: k[i]], w1), (order[k[i] :], w2)):
            mass = p_t[i, group].sum()
            inside_s, inside_t = p_s[i, group] / p_s[i, group].sum(), p_t[i, group] / mass
            low = w * (mass if coupled else 1) * (inside_s - inside_t)
            expected = t * (w0 * (p_s[i, group] - mass * inside_s) + low)
            torch.testing.assert_close(gradient[i, group], expected, rtol=1e-6, atol=1e-9)


def test_intra_is_that_of_dist():
    student, teacher, _ = sample(4, 4, 5, CLASSES)
    options = {"temperature": 4.0, "reduction": "none"}
    loss, plain = build_loss("gdkd", gamma=2.5, **options), build_loss("gdkd", **options)
    intra = build_loss("dist", temperature=4.0).parts(student, teacher)["intra"]
    assert "intra" not in plain.parts(student, teacher) and loss.weights["intra"] == 2.5
    torch.testing.assert_close(loss.parts(student, teacher)["intra"], intra.expand(4, 5))
    torch.testing.assert_close(loss(student, teacher), plain(student, teacher) + 2.5 * intra)


@pytest.mark.parametrize("partition", [*PARTITIONS, {"k": 3, "gamma": 1.0}], ids=str)
@pytest.mark.parametrize("options", [*SETTINGS, {"coupled": True}], ids=str)
def test_gradcheck(partition, options):
    student, teacher, labels = sample(5, 5, CLASSES, scale=1.0)
    loss = build_loss("gdkd", **partition, **options, reduction="none")
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, labels), student.requires_grad_())


@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
@pytest.mark.parametrize("options", [*SETTINGS, {"coupled": True, "gamma": 1.0}], ids=str)
def test_extreme_logits_stay_finite(partition, options):
    g = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.rand(2, 9, CLASSES, generator=g) - 1) * 1e4
    student[0] = teacher[1] = student[2] = teacher[2] = 1e4
    teacher[0], teacher[3, 0] = 0, 1e4
    loss = build_loss("gdkd", **partition, **options)
    value = loss(student.requires_grad_(), teacher, torch.arange(9))
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes):
    """With two classes k is 1 everywhere, and every variant is plain KD."""
    student, teacher, labels = sample(6, 30, classes)
    for variant in ({"threshold": 2.0}, {"class_k": [1] * classes}, {"class_k": [*range(classes - 1, 0, -1), 1]}):
        loss = build_loss("gdkd", w0=1.0, reduction="none", **variant)
        value = loss(student, teacher, labels)
        assert value.isfinite().all()
        if classes == 2:
            torch.testing.assert_close(value, build_loss("kd", reduction="none")(student, teacher))


def test_compiles_whole_and_agrees():
    student, teacher, labels = sample(7, 8, 50)
    loss = build_loss("gdkd", threshold=2.0, coupled=True, gamma=1.0)
    torch.testing.assert_close(torch.compile(loss, fullgraph=True)(student, teacher), loss(student, teacher))
    loss = build_loss("gdkd", class_k=[1 + i % 40 for i in range(50)])
    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(compiled(student, teacher, labels), loss(student, teacher, labels))
