"""What the losses accept, refuse, and how they say it."""

import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch

from hf_gdkd.errors import InputError
from hf_gdkd.losses import (
    FEATURE_LOSSES,
    LOSSES,
    DistillationLoss,
    KDLoss,
    build_loss,
    decoupled_kl,
    loss_options,
    register_loss,
)
from hf_gdkd.losses.partition import _picked_in_chunks, check_groups, sets, top_k


def call(name, student_shape=(4, 6), teacher_shape=(4, 6), labels=None, **options):
    return build_loss(name, **options)(torch.zeros(student_shape), torch.zeros(teacher_shape), labels)


@pytest.mark.parametrize(
    "message, name, options",
    [
        ("did you mean 'gdkd'", "gdkdd", {}),
        ("takes no option 'k': it takes temperature, standardize", "kd", {"k": 3}),
        ("takes no option 'temperature': it takes temperatures", "mlkd", {"temperature": 3}),
        ("expected one of forward, reverse, both", "gdkd", {"kl": "backward"}),
        ("expected one of best, worst", "gdkd", {"strategy": "top"}),
        ("expected one of target, top1", "dkd", {"partition": "top2"}),
        ("expected one of none, global", "gdkd3", {"standardize": "both"}),
        ("expected one of mean, sum, none", "kd", {"reduction": "batchmean"}),
        ("temperature is 0: expected a finite number above 0", "kd", {"temperature": 0}),
        ("temperature is nan", "dist", {"temperature": float("nan")}),
        ("temperatures is -1", "mlkd", {"temperatures": [2, -1]}),
        ("temperatures is empty", "mlkd", {"temperatures": []}),
        ("w2 is -1", "gdkd", {"w2": -1}),
        ("beta is inf", "dist", {"beta": float("inf")}),
        ("k is 0: expected a whole number of at least 1", "gdkd", {"k": 0}),
        ("k is 1: expected a whole number of at least 2", "gdkd3", {"k": 1}),
        ("k is 2.5: expected a whole number", "gdkd", {"k": 2.5}),
        ("k is 0: expected a whole number of at least 1", "gdkd", {"class_k": [1, 0]}),
        ("threshold is 1: expected a number above 1", "gdkd", {"threshold": 1}),
        ("leave k and threshold out", "gdkd", {"class_k": [1, 2], "threshold": 2.0}),
        ("leave k and threshold out", "gdkd", {"class_k": [1, 2], "k": 1}),
        ("gamma is -1", "gdkd", {"gamma": -1}),
        ("gamma is -1", "nkd", {"gamma": -1}),
        ("alpha is nan", "luminet", {"alpha": float("nan")}),
        ("alpha_temperature is 0", "rld", {"alpha_temperature": 0}),
        ("multiplier is -2", "skd", {"multiplier": -2}),
        ("gradient_scaling is 0: expected a finite number above 0", "kd", {"gradient_scaling": 0}),
        ("'cwd' takes no option 'gradient_scaling'", "cwd", {"gradient_scaling": 2.0}),
        ("'fitnet' takes no option 'gradient_scaling'", "fitnet", {"gradient_scaling": 2.0}),
    ],
)
def test_bad_options(message, name, options):
    with pytest.raises(InputError, match=message):
        build_loss(name, **options)


@pytest.mark.parametrize(
    "message, name, case",
    [
        ("teacher has 5 classes, student 6", "kd", {"teacher_shape": (4, 5)}),
        ("expected the same", "kd", {"teacher_shape": (3, 6)}),
        ("at least 2 classes", "kd", {"student_shape": (4, 1), "teacher_shape": (4, 1)}),
        ("k is 6 with 6 classes: expected 1 <= k <= 5", "gdkd", {"k": 6}),
        ("k is 9 with 6 classes: expected 2 <= k <= 5", "gdkd3", {"k": 9}),
        ("labels are missing", "dkd", {}),
        ("labels are missing", "gdkd", {"class_k": [1, 2, 3, 4, 5, 1]}),
        ("class_k has 3 numbers with 6 classes", "gdkd", {"class_k": [1, 2, 3]}),
        ("k is 6 with 6 classes", "gdkd", {"class_k": [1, 2, 3, 4, 5, 6]}),
        ("k is 6 with 6 classes", "gdkd", {"threshold": 2.0, "k": 6}),
        ("a label is 6: expected 0 .. 5", "dkd", {"labels": torch.tensor([0, 1, 6, 2])}),
        ("expected class indices of shape", "dkd", {"labels": torch.zeros(4)}),
        ("labels are soft .* use gdkd", "dkd", {"labels": torch.zeros(4, 6)}),
        ("labels are soft .* use gdkd", "rld", {"labels": torch.zeros(4, 6)}),
        ("labels are missing", "rld", {}),
        ("labels are missing", "nkd", {}),
        ("labels are missing", "kd", {"gradient_scaling": 2.0}),
        ("labels are soft", "nkd", {"gradient_scaling": 2.0, "labels": torch.zeros(4, 6)}),
    ],
)
def test_bad_input(message, name, case):
    with pytest.raises(InputError, match=message):
        call(name, **case)


@pytest.mark.parametrize(
    "message, classes",
    [
        ("empty", [[1], []]),
        ("mutually exclusive", [[1, 2], [2]]),
        ("mutually exclusive", [[1, 1]]),
        ("outside 0 .. 5", [[6]]),
        ("leave at least one", [[0, 1, 2], [3, 4, 5]]),
    ],
)
def test_bad_groups(message, classes):
    logits = torch.zeros(2, 6)
    with pytest.raises(InputError, match=message):
        sets(classes, logits)
    with pytest.raises(InputError, match=message):
        decoupled_kl(logits, logits, [torch.tensor(group, dtype=torch.long) for group in classes])


def test_top_k_is_right_with_ties_and_many_classes():
    """Any k classes that no other class beats, best first, each once."""
    for classes in (10, 700, 21841):
        for logits in (
            torch.zeros(3, classes),
            torch.randint(4, (3, classes)).float(),
            torch.randn(3, classes),
        ):
            for strategy, sign in (("best", 1), ("worst", -1)):
                (index,) = top_k(logits, 5, strategy=strategy)
                check_groups([index], classes)
                expected = (sign * logits).topk(5).values * sign
                torch.testing.assert_close(logits.gather(-1, index), expected, rtol=0, atol=0)


@pytest.mark.parametrize("classes", [10, 159, 160, 700, 4096, 21841])
def test_picking_in_compiled_code_is_top_k_with_ties_and_masked_classes(classes):
    """Of equal classes the first are taken, also where the k largest include minus infinity."""
    masked = torch.full((3, 2, classes), -math.inf)
    masked[..., classes // 2] = masked[..., -1] = 1.0
    for logits in (torch.zeros(3, 2, classes), torch.randint(4, (3, 2, classes)).float(), masked):
        expected = logits.sort(dim=-1, descending=True, stable=True).indices[..., :5]
        assert torch.equal(_picked_in_chunks(logits, 5), expected)


@pytest.mark.parametrize("name, smallest", [("gdkd", 1), ("gdkd3", 2)])
def test_unset_k_shrinks_with_one_warning(name, smallest, caplog):
    """In the log, as all that is said: once for several processes, and without a line of code."""
    loss = build_loss(name, reduction="none")
    loss.check_num_classes(3)
    student, teacher = torch.randn(2, 4, 3)
    value = loss(student, teacher)
    torch.testing.assert_close(build_loss(name, k=2, reduction="none")(student, teacher), value)
    build_loss(name).check_num_classes(6)
    assert caplog.messages == ["k is 2 instead of 5, as there are 3 classes."]
    with pytest.raises(InputError, match=f"expected {smallest} <= k <= 2"):
        build_loss(name, k=3).check_num_classes(3)


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"cwd"}))  # which is on maps alone
def test_two_classes(name):
    student, teacher = torch.randn(2, 4, 2)
    loss = build_loss(name)
    parts = loss.parts(student, teacher, torch.tensor([0, 1, 1, 0]))
    assert all(part.isfinite().all() for part in parts.values())
    if name.startswith("gdkd"):
        assert not parts["low_top"].any() and not parts["low_other"].any()
        kd = KDLoss(reduction="none")(student, teacher)
        torch.testing.assert_close(parts["high"], kd)


def test_none_means_unset_and_options_come_from_the_signature():
    assert build_loss("gdkd", w0=None, k=None, kl=None).weights == build_loss("gdkd").weights
    assert loss_options("kd") == ("temperature", "standardize", "gradient_scaling")
    assert loss_options("gdkd") == (
        *("temperature", "k", "threshold", "class_k", "w0", "w1", "w2", "coupled", "gamma", "kl", "strategy"),
        *("standardize", "gradient_scaling"),
    )
    assert loss_options("dist") == ("temperature", "beta", "gamma", "gradient_scaling")
    assert loss_options("cwd") == ("temperature",)


@pytest.mark.parametrize("five", [5.0, np.int64(5), np.float32(5), np.uint8(5)], ids=repr)
def test_whole_numbers_of_any_type_are_taken(five):
    loss = build_loss("gdkd", k=five)
    assert loss.k == 5 and type(loss.k) is int
    assert build_loss("gdkd", class_k=np.full(6, five)).class_k.tolist() == [5] * 6
    assert build_loss("crd", embedding_size=five).embedding_size == 5


@pytest.mark.parametrize("bad", [2.5, "5", float("nan"), float("inf"), np.float64(0), True])
def test_what_is_not_a_whole_number_is_refused(bad):
    with pytest.raises(InputError, match="expected a whole number of at least 1"):
        build_loss("gdkd", k=bad)


def test_class_k_moves_with_the_loss_and_is_in_no_state_dict():
    loss = build_loss("gdkd", class_k=[1, 2, 3, 1, 2, 3])
    assert "class_k" in dict(loss.named_buffers()) and not loss.state_dict()
    assert loss.to("meta").class_k.device.type == "meta"


@pytest.mark.parametrize("name", LOSSES | FEATURE_LOSSES)
def test_repr_shows_every_option(name):
    """Defaults too, and what the user set; of the same loss it says the same after a copy."""
    shown = repr(build_loss(name))
    signature = inspect.signature(type(build_loss(name))).parameters.values()
    for parameter in signature:
        assert (f"{parameter.name}={parameter.default!r}" in shown) == (parameter.default is not None)
    if name.startswith("gdkd"):
        loss = build_loss(name, k=3, w2=8.0)
        assert "k=3, " in repr(loss) and "w2=8.0" in repr(loss) and repr(copy.deepcopy(loss)) == repr(loss)
        assert repr(pickle.loads(pickle.dumps(loss))) == repr(loss)


def test_register_loss(monkeypatch):
    monkeypatch.setattr("hf_gdkd.losses.registry.LOSSES", dict(LOSSES))

    class Gap(DistillationLoss):
        def __init__(self, *, power: float = 2.0, reduction: str = "mean") -> None:
            super().__init__(reduction=reduction)
            self.power, self.weights = power, {"gap": 0.5}

        def compute(self, student, teacher, labels):
            return {"gap": (student - teacher).abs().pow(self.power).mean(-1)}

    register_loss("gap", Gap)
    assert loss_options("gap") == ("power", "gradient_scaling")
    assert build_loss("gap", power=1.0)(torch.ones(2, 3), torch.zeros(2, 3)).item() == 0.5
    with pytest.raises(InputError, match="'kd' is taken by KDLoss"):
        register_loss("kd", Gap)
    with pytest.raises(InputError, match="expected a subclass of DistillationLoss"):
        register_loss("mse", torch.nn.MSELoss)
