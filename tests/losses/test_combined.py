"""Several losses as one: the sum of what each is alone, with options of its own, and what is refused."""

import pytest
import torch

from hf_gdkd.errors import InputError
from hf_gdkd.losses import CombinedLoss, Features, build_loss, loss_options


def pair():
    return torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def features():
    g = torch.Generator().manual_seed(1)
    return (
        Features([torch.randn(6, width, 4, 4, generator=g)], torch.randn(6, width, generator=g)) for width in (5, 7)
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_weighted_sum_of_the_losses(reduction):
    student, teacher = pair()
    options = {"k": 3, "temperature": 2.0, "dist.temperature": 4.0, "dist.weight": 0.25, "reduction": reduction}
    loss = build_loss("gdkd+dist", **options)
    alone = {"gdkd": {"k": 3, "temperature": 2.0}, "dist": {"temperature": 4.0}}
    gdkd, dist = (build_loss(name, **own, reduction=reduction) for name, own in alone.items())
    torch.testing.assert_close(loss(student, teacher), gdkd(student, teacher) + 0.25 * dist(student, teacher))
    terms = gdkd.parts(student, teacher)
    names = [*(f"gdkd/{name}" for name in terms), "dist/inter", "dist/intra"]
    assert list(loss.parts(student, teacher)) == names
    torch.testing.assert_close(loss.parts(student, teacher)["gdkd/high"], terms["high"])
    assert loss.weights == {f"gdkd/{n}": w for n, w in gdkd.weights.items()} | {"dist/inter": 0.5, "dist/intra": 0.5}


def test_logits_and_features_together_and_the_gradient_reaches_both():
    student, teacher = pair()
    ours, theirs = features()
    loss = build_loss("kd+fitnet+rkd", **{"fitnet.weight": 3.0})
    loss.build(ours, theirs)
    leaves = [student.requires_grad_(), ours.stages[0].requires_grad_(), ours.pooled.requires_grad_()]
    total = loss(student, teacher, None, ours, theirs)
    fitnet, rkd = loss.members["fitnet"], loss.members["rkd"]
    by_hand = build_loss("kd")(student, teacher) + 3 * fitnet(ours, theirs) + rkd(ours, theirs)
    torch.testing.assert_close(total, by_hand)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(total, [*leaves, *loss.parameters()]))
    with pytest.raises(InputError, match="fitnet compares features: pass student_features and teacher_features too"):
        loss(student, teacher)


def test_weights_that_are_unset_are_the_published_ones_beside_a_cross_entropy_of_1():
    weights = build_loss("kd+mlkd+fitnet+at+rkd").member_weights
    assert weights == pytest.approx({"kd": 1, "mlkd": 9, "fitnet": 100, "at": 1000, "rkd": 1})


def test_a_list_is_the_same_as_names_and_options():
    loss = build_loss([{"name": "gdkd", "k": 5, "weight": "auto"}, "dist", {"name": "fitnet", "weight": 30}])
    assert isinstance(loss, CombinedLoss)
    assert loss.member_weights == {"gdkd": "auto", "dist": 1.0, "fitnet": 30}
    assert loss.members["gdkd"].k == 5
    with pytest.raises(InputError, match=r"gdkd.weight is auto, which only GDKDTrainer finds: set a number"):
        build_loss("gdkd+dist", **{"gdkd.weight": "auto"})(*pair())


@pytest.mark.parametrize("name, options, said", [
    ("gdkd+dist", {"alpha": 1.0}, "the loss 'gdkd+dist' takes no option 'alpha': it takes weight, temperature, k,"),
    ("gdkd+dist", {"kd.k": 1}, "kd.k is for no part of the loss 'gdkd+dist': its parts are gdkd, dist."),
    ("gdkd+dist", {"dist.k": 1}, "the loss 'dist' takes no option 'k': it takes weight, temperature, beta, gamma, gr"),
    ("gdkd+dist", {"dist.weight": -1}, "dist.weight is -1: use a finite number that is 0 or more, auto, or"),
    ("gdkd+dist", {"dist.weight": "auto:0"}, "dist.weight is auto:0"),
    ("gdkd+dist", {"dist.temperature": "hot"}, "the loss 'dist' does not take temperature 'hot'"),
    ("gdkd+gdkd", {}, "the loss 'gdkd+gdkd' has gdkd twice"),
    ("gdkd+dits", {}, "there is no loss 'dits': did you mean 'dist'?"),
    ([{"k": 3}], {}, "{'k': 3} is no part of a loss: write its name"),
])  # fmt: skip
def test_what_is_refused(name, options, said):
    with pytest.raises(InputError) as caught:
        build_loss(name, **options)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_classes_are_checked_for_every_loss():
    with pytest.raises(InputError, match="k is 9"):
        build_loss("dist+gdkd", k=9).check_num_classes(5)


def test_every_single_loss_takes_its_options_with_its_name_too():
    assert build_loss("gdkd", **{"gdkd.k": 4}).k == 4
    assert "weight" not in loss_options("gdkd")
