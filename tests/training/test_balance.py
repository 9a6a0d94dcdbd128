"""Automatic weights: what they come to, at any split of a step, after a resumption, and what is said of them."""

from __future__ import annotations

import logging

import pytest
import torch
from tiny_cnns import CNN, BigCNN, distil, make, make_data, weights
from tiny_training import StopAt, rows
from torch.nn import functional as F

from hf_gdkd import GDKDConfig
from hf_gdkd.errors import InputError
from hf_gdkd.losses import build_loss
from hf_gdkd.training.balance import Balance, found_weights
from hf_gdkd.training.training_picture import draw_training

AUTO = {"loss": "gdkd+dist", "loss_options": ["gdkd.k=2", "gdkd.weight=auto", "dist.weight=auto:2"]}


def norms(model, teacher, batch, losses):
    """Of the gradients at the logits, by hand."""
    x, labels = torch.stack([r["pixel_values"] for r in batch]), torch.tensor([r["labels"] for r in batch])
    logits = model(x).detach().requires_grad_()
    values = [F.cross_entropy(logits, labels), *(loss(logits, teacher(x).detach()) for loss in losses)]
    return [torch.autograd.grad(value, logits)[0].norm() for value in values]


def test_weights_make_the_gradients_lambda_times_the_cross_entropys(tmp_path):
    """And the step is that of the plain loop with these weights, the first without the distillation."""
    trainer = distil(tmp_path, **AUTO, num_train_epochs=2, ce_weight=0.5, kd_weight=0.7)
    student, teacher, data = make(CNN), make(BigCNN, 1), make_data()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    losses, factors, means = [build_loss("gdkd", k=2), build_loss("dist")], (4.0, 2.0), torch.zeros(3)
    for step, first in enumerate((0, 8, 16) * 2):
        batch = data[first : first + 8]
        found = [0.0, 0.0] if step == 0 else [f * 0.5 * means[0] / m for f, m in zip(factors, means[1:], strict=True)]
        measured = torch.stack(norms(student, teacher, batch, losses))
        x, labels = torch.stack([r["pixel_values"] for r in batch]), torch.tensor([r["labels"] for r in batch])
        logits = student(x)
        kd = sum(w * loss(logits, teacher(x).detach()) for w, loss in zip(found, losses, strict=True))
        total = 0.5 * F.cross_entropy(logits, labels) + 0.7 * kd
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        means += (measured - means) / (step + 1)
        row = rows(trainer)[step]
        assert row["loss"] == pytest.approx(total.item(), rel=1e-4)
        sizes = measured * torch.tensor([0.5, 0.7 * found[0], 0.7 * found[1]])
        assert [row[f"share/{name}"] for name in ("ce", "gdkd", "dist")] == pytest.approx(
            (sizes / sizes.sum()).tolist(), rel=1e-3, abs=1e-6
        )
    torch.testing.assert_close(
        weights(trainer)[: sum(p.numel() for p in student.parameters())],
        torch.cat([p.detach().flatten() for p in student.parameters()]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_without_a_cross_entropy_the_first_loss_is_the_measure(tmp_path):
    trainer = distil(tmp_path, "gdkd+dist", kd_weight="auto", ce_weight=0.0)
    assert trainer.balance.names == ["gdkd", "dist"]
    found, (gdkd, dist) = trainer.balance.weights(), trainer.balance.norms
    assert found["gdkd"] == 1.0 and float(found["dist"]) == pytest.approx(float(gdkd / dist), rel=1e-5)
    assert rows(trainer)[0]["share/gdkd"] == 1.0, "in the first step nothing is known of the others"
    assert rows(trainer)[1]["share/dist"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("options", [
    {"loss": "gdkd", "kd_weight": "auto"},
    {"loss": "dkd+fitnet", "loss_options": {"dkd.weight": "auto", "fitnet.weight": "auto"}},
])  # fmt: skip
def test_accumulation_and_resumption_do_not_change_the_steps(tmp_path, options):
    options = options | {"num_train_epochs": 2, "learning_rate": 1e-3}
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    if "fitnet" in options["loss"]:
        split = {}  # standardization is over the micro-batch
    whole, parts = distil(tmp_path / "a", **options), distil(tmp_path / "b", **options, **split)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.balance.norms, parts.balance.norms, rtol=1e-4, atol=1e-6)
    distil(tmp_path / "c", **options, callbacks=[StopAt(4)])
    resumed = distil(tmp_path / "c", **options, resume=str(tmp_path / "c" / "checkpoint-4"))
    assert torch.equal(weights(whole), weights(resumed)) and rows(whole) == rows(resumed)
    assert any(name.startswith("weight/") for name in rows(whole)[0])


def test_an_automatic_weight_is_not_the_ramps_nor_a_number(tmp_path):
    """The ramp of a growing weight is not undone, and the log says the share as it is."""
    steady = distil(tmp_path / "a", "kd", kd_weight="auto:4", learning_rate=0.0)
    grown = distil(tmp_path / "b", "kd", kd_weight="auto:4", learning_rate=0.0, kd_warmup_epochs=2)
    last, slower = rows(steady)[-1], rows(grown)[-1]
    assert last["share/kd"] == pytest.approx(4 / 5, abs=0.05)
    ratio = [row["share/kd"] / row["share/ce"] for row in (slower, last)]
    assert ratio[0] / ratio[1] == pytest.approx(slower["kd_ramp"], rel=0.1) and slower["kd_ramp"] < 0.5


@pytest.mark.parametrize("weight, ce_weight, said", [
    (1e-4, 1.0, "The student hardly learns from the loss kd, which had 0.0 % of the gradient at the logits in this "
                "epoch: use a larger kd.weight."),
    (1e4, 1.0, "The student learns almost only from the loss kd"),
    ("auto:40", 1.0, None),  # as it was asked for
    (1.0, 0.0, None),  # there is nothing beside it
])  # fmt: skip
def test_a_share_that_is_too_small_or_too_large_is_said_once(tmp_path, caplog, weight, ce_weight, said):
    loss = [{"name": "kd", "weight": weight}, "rkd"]
    with caplog.at_level(logging.WARNING, logger="hf_gdkd"):
        trainer = distil(tmp_path, loss, num_train_epochs=3, learning_rate=0.0, ce_weight=ce_weight)
    messages = [record.getMessage() for record in caplog.records if "gradient at the logits" in record.getMessage()]
    assert len(messages) == (said is not None) and all(each.startswith(said) for each in messages)
    assert (rows(trainer)[-1]["share/kd"] < 0.02) == (weight == 1e-4)


def test_what_is_measured_only_where_it_says_something():
    made = {
        name: Balance.of(name, build_loss(name), "auto" if name == "kd" else 1.0, 1.0)
        for name in ("kd", "gdkd", "at+rkd")
    }
    assert made["kd"].names == ["ce", ""] and made["gdkd"] is None and made["at+rkd"] is None
    assert GDKDConfig(loss="fitnet", kd_weight="auto").build_loss().normalize is True
    args = GDKDConfig(loss="dist+fitnet", kd_weight="auto")
    assert found_weights(args.loss, args.build_loss(), args.kd_weight) == {"dist": "auto", "fitnet": 30.0}
    for options in ({"loss": "at", "kd_weight": "auto"}, {"loss": "kd+at", "loss_options": ["at.weight=auto"]}):
        with pytest.raises(InputError, match="the weight of at is auto, which is for losses on logits and for fitnet"):
            GDKDConfig(**options)


def test_the_picture_has_the_shares(tmp_path):
    trainer = distil(tmp_path, **AUTO)
    draw_training(tmp_path, trainer.state.log_history, "title")
    assert (tmp_path / "training.png").stat().st_size > 1000
