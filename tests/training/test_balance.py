"""Automatic weights: what they come to, at any split of a step, after a resumption, and what is said of them."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from tiny_cnns import CNN, BigCNN, InOrder, config, distil, make, make_data, vit, weights
from tiny_training import StopAt, rows
from torch.nn import functional as F

from hf_gdkd import GDKDConfig
from hf_gdkd.errors import InputError
from hf_gdkd.losses import Features, build_loss
from hf_gdkd.training.balance import Balance, found_weights
from hf_gdkd.training.feature_balance import FeatureBalance
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
    {"loss": "kd+at+fitnet", "loss_options": {"at.weight": "auto", "fitnet.weight": "auto:2"}, "normalize": False},
])  # fmt: skip
def test_accumulation_and_resumption_do_not_change_the_steps(tmp_path, options):
    options = options | {"num_train_epochs": 2, "learning_rate": 1e-3}
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    if options["loss"] == "dkd+fitnet":
        split = {}  # standardization is over the micro-batch
    whole, parts = distil(tmp_path / "a", **options), distil(tmp_path / "b", **options, **split)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        dict(whole.balance.named_buffers()), dict(parts.balance.named_buffers()), rtol=1e-4, atol=1e-6
    )
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
    args = GDKDConfig(loss="dist+fitnet+at", loss_options=["at.weight=auto", "fitnet.weight=auto:2"])
    assert found_weights(args.loss, args.build_loss(), 1.0) == {"dist": 1.0, "fitnet": "auto:2", "at": "auto"}


def test_the_picture_has_the_shares(tmp_path):
    trainer = distil(tmp_path, **AUTO)
    draw_training(tmp_path, trainer.state.log_history, "title")
    assert (tmp_path / "training.png").stat().st_size > 1000


@pytest.mark.parametrize("loss, of, factor", [("at", "stage3", 1.0), ("rkd", "pooled", 3.0), ("fitnet", "stage2", 0.5)])
def test_on_features_the_gradients_are_compared_where_the_loss_reads_last(tmp_path, loss, of, factor):
    """By hand: at the last stage, at what enters the head, or at the middle stage, of which fitnet reads the output."""
    options = {"kd_weight": f"auto:{factor}", "ce_weight": 0.5, "normalize": False if loss == "fitnet" else None}
    trainer = distil(tmp_path, loss, num_train_epochs=2, **options)
    start = InOrder(make(CNN), make(BigCNN, 1), config(tmp_path / "b", loss), train_dataset=make_data())
    student, teacher, data, member = make(CNN), make(BigCNN, 1), make_data(), start.distillation_loss
    parameters = [*student.parameters(), *member.parameters()]
    optimizer, norms = torch.optim.SGD(parameters, lr=0.1), torch.zeros(2)
    for step, first in enumerate((0, 8, 16) * 2):
        weight = 0.0 if step == 0 else factor * 0.5 * norms[0] / norms[1]
        batch = data[first : first + 8]
        x, labels = torch.stack([r["pixel_values"] for r in batch]), torch.tensor([r["labels"] for r in batch])
        stages = student.stages(x)
        pooled = stages[-1].mean((2, 3))
        read = [stage.view_as(stage) for stage in stages], pooled.view_as(pooled)
        taught = teacher.stages(x)
        term = member(Features(*read), Features(taught, taught[-1].mean((2, 3))))
        ce = F.cross_entropy(student.head(pooled), labels)
        reached = {"stage2": (stages[1], read[0][1]), "stage3": (stages[2], read[0][2]), "pooled": (pooled, read[1])}
        found = [
            torch.autograd.grad(value, place, retain_graph=True)[0].norm()
            for value, place in zip((ce, term), reached[of], strict=True)
        ]
        norms += (torch.stack(found) - norms) / (step + 1)
        total = 0.5 * ce + weight * term
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        row = rows(trainer)[step]
        assert row["loss"] == pytest.approx(total.item(), rel=1e-4)
        assert row[f"weight/{loss}"] == pytest.approx(float(factor * 0.5 * norms[0] / norms[1]), rel=1e-3)


def test_on_features_the_first_ten_steps_and_every_tenth_are_measured(tmp_path):
    trainer = distil(tmp_path, "kd+at", loss_options=["at.weight=auto"], num_train_epochs=9, learning_rate=1e-3)
    assert trainer.state.global_step == 27 and trainer.balance.features.measurements == 10 + 2
    assert [r["weight/at"] for r in rows(trainer)[11:20]] == [rows(trainer)[10]["weight/at"]] * 9
    assert len(trainer.parts.taps()["at"]) == 0, "nothing of a step is kept"


def test_on_features_of_a_transformer_its_class_token_counts(tmp_path):
    """The cross-entropy reaches the last block through the class token alone, which is no part of the map."""
    trainer = distil(tmp_path, "at", vit, kd_weight="auto")
    assert (trainer.balance.features.norms > 0).all() and rows(trainer)[-1]["weight/at"] > 0


def test_on_features_in_half_precision_small_gradients_do_not_vanish():
    """As of a student that is close to its teacher, in a large batch: a hundred million features."""
    found = {}
    for dtype in (torch.float32, torch.float16):
        features = torch.linspace(1, 2, 64).to(dtype).requires_grad_()
        read, logits = features.view_as(features), features.float().sum()[None]
        balance = FeatureBalance({"fitnet": 1.0})
        term = (read.float() ** 2).sum() * 1e-8
        balance.note(logits, torch.ones(1), {"fitnet": term}, {"fitnet": [(features, read)]})
        balance.end_step(SimpleNamespace(reduce=lambda squares, how: squares))
        found[dtype] = balance.weights(1.0)["fitnet"].item()
    assert found[torch.float16] == pytest.approx(found[torch.float32], rel=1e-2)


def test_on_features_something_at_the_logits_is_needed(tmp_path):
    with pytest.raises(
        InputError, match="the weight of at is auto, and there is neither a cross-entropy nor a loss on"
    ):
        distil(tmp_path, "at+rkd", ce_weight=0.0, loss_options=["at.weight=auto"])
    trainer = distil(tmp_path, "rkd+kd", ce_weight=0.0, loss_options=["rkd.weight=auto", "kd.weight=auto"])
    assert rows(trainer)[-1]["weight/rkd"] > 0 and rows(trainer)[-1]["weight/kd"] == 1.0


def test_on_features_that_the_logits_do_not_depend_on(tmp_path):
    class Aside(CNN):
        def forward(self, pixel_values):
            maps = self.stages(pixel_values)
            return self.head(maps[-1].detach().mean((2, 3)))

    def frozen():
        model = CNN()
        model.requires_grad_(False).head.requires_grad_(True)
        return model

    for student in (Aside, frozen):
        with pytest.raises(InputError, match="the logits do not depend on the last features that the loss reads"):
            distil(tmp_path, "at", student, kd_weight="auto")
