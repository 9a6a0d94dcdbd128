"""Identities that hold for all logits, tried on many."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gdkd.losses import LOSSES, DistillationLoss, build_loss, decoupled_kl, loss_options
from hf_gdkd.losses.partition import sets, top1_top_k, top_k
from hf_gdkd.scripts.benchmark_losses import peak_mb

IN_THE_PAPER = ("kd", "dkd", "gdkd", "gdkd3", "dist", "mlkd")
LOSS_CASES = [
    *((name, {}) for name in IN_THE_PAPER),
    ("kd", {"standardize": "global"}),
    ("dkd", {"partition": "top1"}),
    ("gdkd", {"kl": "reverse"}),
    ("gdkd", {"kl": "both", "strategy": "worst"}),
    ("gdkd", {"standardize": "both"}),
    ("gdkd", {"standardize": "other"}),
    ("gdkd", {"threshold": 1.5}),
    ("gdkd", {"threshold": 1.2, "k": 4, "standardize": "both", "kl": "both"}),
    ("gdkd", {"coupled": True, "gamma": 2.0}),
    ("mlkd", {"mask_samples": True, "mask_classes": True}),
    *((name, {}) for name in ("nkd", "ttm", "wttm", "luminet", "rld", "skd")),
    ("rld", {"standardize": "global", "alpha_temperature": 2.0}),
    ("skd", {"multiplier": 2.0}),
]
NOT_ZERO_AT_EQUALITY = ("nkd", "ttm", "wttm", "rld")  # see test_more_losses.py
every_loss = pytest.mark.parametrize(
    "name, options",
    LOSS_CASES,
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
random_case = settings(max_examples=15, deadline=None)
seeds, temperatures = st.integers(0, 2**16), st.sampled_from([0.5, 1.0, 4.0])


def logits(seed, *shape, scale=3.0, dtype=torch.float64):
    """Student and teacher logits of that shape, and labels."""
    g = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, *shape, generator=g, dtype=torch.float64)
    return student.to(dtype), teacher.to(dtype), torch.randint(shape[-1], shape[:-1], generator=g)


def value_and_gradient(loss: DistillationLoss, student, teacher, labels):
    student = student.clone().requires_grad_()
    value = loss(student, teacher, labels)
    return value.detach(), torch.autograd.grad(value, student)[0]


@random_case
@given(seed=seeds, temperature=temperatures, classes=st.integers(3, 40), data=st.data())
def test_teacher_mass_weights_recover_kd(seed, temperature, classes, data):
    """Chain rule of KL: high + sum of mass * low == KD, for two groups, three, and any sets."""
    k = data.draw(st.integers(2, classes - 1))
    order = data.draw(st.permutations(range(classes)))
    student, teacher, _ = logits(seed, 4, classes)
    kd = F.kl_div(
        (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1),
        reduction="none", log_target=True,
    )  # fmt: skip
    kd = temperature**2 * kd.sum(-1)
    for groups in (
        top_k(teacher, k),
        top1_top_k(teacher, k),
        sets([order[: k // 2 or 1], order[k:]], teacher),
    ):
        terms = decoupled_kl(student, teacher, groups, temperature=temperature)
        torch.testing.assert_close(terms.high + (terms.mass * terms.low).sum(-1), kd)
        torch.testing.assert_close(terms.mass.sum(-1), torch.ones(4, dtype=torch.float64))


@random_case
@given(seed=seeds, temperature=temperatures, k=st.integers(1, 11), w=st.tuples(*[st.floats(0, 8)] * 3))
def test_closed_form_gradient(seed, temperature, k, w):
    """dL/dz_i = T * (w0 * (p_i^S - b_g^T * p_{i|g}^S) + w_g * (p_{i|g}^S - p_{i|g}^T)) for i in group g."""
    student, teacher, _ = logits(seed, 3, 12)
    loss = build_loss("gdkd", temperature=temperature, k=k, w0=w[0], w1=w[1], w2=w[2], reduction="sum")
    _, gradient = value_and_gradient(loss, student, teacher, None)

    p_s, p_t = (student / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    in_top = torch.zeros(3, 12, dtype=torch.float64).scatter(-1, teacher.topk(k).indices, 1)
    expected = 0
    for member, w_g in ((in_top, w[1]), (1 - in_top, w[2])):
        mass = (p_t * member).sum(-1, keepdim=True)
        inside_s = p_s * member / (p_s * member).sum(-1, keepdim=True)
        inside_t = p_t * member / mass
        expected = expected + w[0] * (p_s * member - mass * inside_s) + w_g * (inside_s - inside_t)
    torch.testing.assert_close(gradient, temperature * expected, rtol=1e-6, atol=1e-9)


@every_loss
@random_case
@given(seed=seeds)
def test_invariances(name, options, seed):
    """A shift of a sample's logits (luminet: of all at once) changes nothing, nor does a permutation of the classes."""
    student, teacher, labels = logits(seed, 6, 9)
    loss = build_loss(name, **options)
    value = loss(student, teacher, labels)
    shift = torch.linspace(-5, 5, 6, dtype=torch.float64).unsqueeze(-1)
    shift = shift[:1] if name == "luminet" else shift
    torch.testing.assert_close(loss(student + shift, teacher - shift, labels), value)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    permuted = loss(student[:, order], teacher[:, order], order.argsort()[labels])
    torch.testing.assert_close(permuted, value)


@every_loss
def test_zero_at_equal_logits(name, options):
    if name in NOT_ZERO_AT_EQUALITY:
        return
    _, teacher, labels = logits(0, 6, 9)
    value, gradient = value_and_gradient(build_loss(name, **options), teacher, teacher, labels)
    tolerance = 1e-5 if name == "dist" or "gamma" in options else 1e-12  # its 1e-8 beside the norms
    assert value.abs() < tolerance
    assert gradient.abs().max() < tolerance


@every_loss
def test_gradcheck(name, options):
    student, teacher, labels = logits(1, 5, 7, scale=1.0)
    loss = build_loss(name, **options, reduction="none")
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, labels), student.requires_grad_())


@every_loss
@pytest.mark.parametrize("dtype, scale", [(torch.float32, 1e4), (torch.bfloat16, 200), (torch.float16, 200)], ids=str)
def test_extreme_logits_stay_finite(name, options, dtype, scale):
    g = torch.Generator().manual_seed(0)
    student, teacher = ((2 * torch.rand(2, 8, 12, generator=g) - 1) * scale).to(dtype)
    if not (dtype == torch.float16 and (name in ("dist", "skd") or "standardize" in options)):
        student[0] = student[1] = scale  # a standard deviation of 0: the gradient, 1e7, is beyond float16
    teacher[2] = -scale
    teacher[0] = F.one_hot(torch.tensor(3), 12) * scale
    value, gradient = value_and_gradient(build_loss(name, **options), student, teacher, torch.arange(8))
    assert value.dtype == torch.float32 and value.isfinite()
    assert gradient.dtype == dtype and gradient.isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_are_computed_in_float32(name, options, dtype):
    """Rounding the logits is the only difference: the value is that of the rounded logits, to 1e-4."""
    student, teacher, labels = logits(2, 6, 9, dtype=dtype)
    loss = build_loss(name, **options)
    exact = loss(student.double(), teacher.double(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(student, teacher, labels), exact.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["kd", "dkd", "gdkd", "gdkd3"])
def test_masked_teacher_classes_cost_nothing(name):
    """A teacher logit of -inf is a probability of 0: its term is 0, as in the limit."""
    student, teacher, _ = logits(3, 4, 12)
    labels = teacher.argmax(-1)
    masked, limit = teacher.clone(), teacher.clone()
    masked[:, 2], limit[:, 2] = -math.inf, -1e5
    loss = build_loss(name, k=3) if name.startswith("g") else build_loss(name)
    labels[labels == 2] = 0
    got, expected = (value_and_gradient(loss, student, t, labels) for t in (masked, limit))
    torch.testing.assert_close(got, expected)


@every_loss
@pytest.mark.parametrize("lead", [(), (6,), (2, 3), (2, 3, 2)], ids=str)
def test_leading_shapes_and_reductions(name, options, lead):
    student, teacher, labels = logits(4, *lead, 9)
    none, mean, total = (build_loss(name, **options, reduction=r) for r in ("none", "mean", "sum"))
    each = none(student, teacher, labels)
    parts = none.parts(student, teacher, labels)
    assert each.shape == (() if none.per_batch else lead)
    assert all(part.shape == each.shape for part in parts.values())
    torch.testing.assert_close(none.weigh(parts), each, rtol=0, atol=0)
    flat = none(student.reshape(-1, 9), teacher.reshape(-1, 9), labels.reshape(-1))
    torch.testing.assert_close(flat.reshape(each.shape), each)
    torch.testing.assert_close(mean(student, teacher, labels), each.mean())
    torch.testing.assert_close(total(student, teacher, labels), each.sum())


@every_loss
def test_only_the_student_learns(name, options):
    student, teacher, labels = logits(5, 6, 9)
    teacher.requires_grad_()
    build_loss(name, **options)(student.requires_grad_(), teacher, labels).backward()
    assert student.grad is not None and teacher.grad is None
    with torch.inference_mode():
        from_inference_mode = teacher.clone()
    build_loss(name, **options)(student, from_inference_mode, labels).backward()


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"cwd"}))  # which is on maps alone
def test_compiles_whole_and_agrees(name):
    student, teacher, labels = logits(6, 8, 5000, dtype=torch.float32)
    loss = build_loss(name, **({"temperatures": [2.0]} if "temperatures" in loss_options(name) else {}))
    expected = value_and_gradient(loss, student, teacher, labels)
    if name not in IN_THE_PAPER:
        torch.compiler.reset()  # it recompiles the shared `forward` for a limited number of losses
    compiled = torch.compile(loss, fullgraph=True, backend="inductor" if name in IN_THE_PAPER else "aot_eager")
    leaf, constant = student.clone().requires_grad_(), teacher.clone()
    value = compiled(leaf, constant, labels)
    value.backward()
    torch.testing.assert_close((value.detach(), leaf.grad), expected)
    assert torch.equal(leaf.detach(), student) and torch.equal(constant, teacher)


@pytest.mark.parametrize("name, options", [("kd", {}), ("dkd", {}), ("gdkd", {"k": 2}), ("gdkd3", {"k": 2})])
def test_compiled_maps_agree_and_leave_both_logits_as_they_are(name, options):
    """Code that reuses memory could write the gradient into an input, which it holds for the backward pass."""
    student, teacher, labels = logits(7, 2, 8, 8, 19, dtype=torch.float32)
    student, teacher = (x.movedim(-1, 1).contiguous() for x in (student, teacher))
    loss = build_loss(name, dim=1, **options)
    expected = value_and_gradient(loss, student, teacher, labels)
    torch.compiler.reset()  # it recompiles the shared `forward` for a limited number of losses
    leaf, constant = student.clone().requires_grad_(), teacher.clone()
    compiled = torch.compile(loss, fullgraph=True)
    value = compiled(leaf, constant, labels)
    value.backward()
    torch.testing.assert_close((value.detach(), leaf.grad), expected)
    assert torch.equal(leaf.detach(), student) and torch.equal(constant, teacher)
    if name == "kd":  # the gradient, and what there is one of for each pixel; the others hold more
        assert peak_mb(compiled, student, teacher, labels) < 1.5e-6 * student.nbytes


def test_parts_may_be_changed_in_place_and_be_whole_numbers():
    student, teacher, labels = logits(8, 4, 9)
    for name in ("dkd", "gdkd", "gdkd3"):
        for part in build_loss(name).parts(student.clone().requires_grad_(), teacher, labels).values():
            part.mul_(2)

    class Disagreement(DistillationLoss):
        @property
        def weights(self):
            return {"wrong": 1.0}

        def compute(self, student, teacher, labels):
            return {"wrong": (student.argmax(-1) != teacher.argmax(-1)).int()}

    assert 0 <= Disagreement()(student, teacher) <= 1
