"""The losses under torch.func: vmap, grad, jacobians and what is made of them."""

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from hf_gdkd.losses import build_loss

LOSSES = [
    ("kd", {}),
    ("dkd", {"partition": "top1"}),
    ("gdkd", {"k": 3}),
    ("gdkd", {"k": 3, "kl": "both", "standardize": "both", "coupled": True}),
    ("gdkd", {"threshold": 1.5}),
    ("gdkd3", {"k": 3}),
    ("wttm", {}),
    ("skd", {}),
]
losses = pytest.mark.parametrize("name, options", LOSSES, ids=str)


def sample():
    return torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@losses
def test_grad_of_each_sample_is_the_gradient_of_the_batch(name, options):
    student, teacher = sample()
    each = vmap(grad(build_loss(name, **options)))(student, teacher)
    total = build_loss(name, **options, reduction="sum")
    leaf = student.clone().requires_grad_()
    torch.testing.assert_close(each, torch.autograd.grad(total(leaf, teacher), leaf)[0])
    torch.testing.assert_close(vmap(build_loss(name, **options))(student, teacher).sum(), total(student, teacher))


@losses
def test_forward_and_reverse_jacobians_agree(name, options):
    student, teacher = sample()
    loss = build_loss(name, **options, reduction="none")
    backward = jacrev(loss)(student, teacher)
    torch.testing.assert_close(jacfwd(loss)(student, teacher), backward)
    direction = torch.ones_like(student).cumsum(-1)
    tangent = jvp(lambda s: loss(s, teacher), (student,), (direction,))[1]
    torch.testing.assert_close(tangent, (backward * direction).sum((-1, -2)))


@pytest.mark.parametrize(
    "name, options", [("dkd", {}), ("gdkd", {"class_k": [1, 2, 3, 1, 2, 3, 4]}), ("nkd", {}), ("rld", {})], ids=str
)
def test_labels_are_mapped_too(name, options):
    student, teacher = sample()
    labels = torch.tensor([0, 6, 3, 3])
    loss = build_loss(name, **options, reduction="none")
    torch.testing.assert_close(vmap(loss)(student, teacher, labels), loss(student, teacher, labels))


def test_hessian_is_that_of_the_reverse_mode():
    student, teacher = sample()[:, 0]
    loss = build_loss("gdkd", k=3)
    expected = torch.autograd.functional.hessian(lambda s: loss(s, teacher), student)
    torch.testing.assert_close(hessian(loss)(student, teacher), expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("name, options", [("dkd", {"partition": "top1"}), ("gdkd", {"k": 3}), ("gdkd3", {"k": 3})])
def test_the_gradient_has_a_gradient(name, options, temperature):
    student, teacher = sample()
    loss = build_loss(name, temperature=temperature, reduction="none", **options)
    assert torch.autograd.gradgradcheck(lambda s: loss(s, teacher), student.requires_grad_())


@pytest.mark.parametrize("name, options", [("dkd", {"partition": "top1"}), ("gdkd", {"k": 3}), ("gdkd3", {"k": 3})])
def test_gradients_of_many_outputs_at_once(name, options):
    student, teacher = sample()
    loss = build_loss(name, temperature=2.0, reduction="none", **options)
    each, at_once = (
        torch.autograd.functional.jacobian(lambda s: loss(s, teacher), student, vectorize=vectorize)
        for vectorize in (False, True)
    )
    torch.testing.assert_close(at_once, each)


def test_compiled_gradient_of_each_sample():
    student, teacher = sample()
    each = vmap(grad(build_loss("gdkd3", k=3)))
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(each, backend="aot_eager")(student, teacher), each(student, teacher))


def test_logits_that_changed_before_the_gradient_are_noticed():
    for changed in (0, 1):
        logits = [each.clone() for each in sample()]
        leaf = logits[0].requires_grad_()
        loss = build_loss("gdkd", k=3)(leaf, logits[1])
        with torch.no_grad():
            logits[changed].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
