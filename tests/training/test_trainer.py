"""GDKDTrainer by equivalence: with a plain loop, with other splits of the batch, with an uninterrupted run."""

from __future__ import annotations

import copy
import math
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from tiny_training import (
    CLASSES,
    SAMPLES,
    SIZE,
    STUDENTS,
    InOrder,
    NormedTeacher,
    Plain,
    StopAt,
    config,
    convnext,
    distil,
    make,
    make_data,
    rows,
    vit,
    weights,
)
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForImageClassification,
)

from hf_gdkd import GDKDConfig, GDKDTrainer, Teacher
from hf_gdkd.errors import InputError
from hf_gdkd.losses import build_loss
from hf_gdkd.models.loading import load_model

SECRET = "hf_secretsecretsecretsecretsecret"


# Exactness


def update_error(folder, student, trainer=GDKDTrainer, **options):
    """Relative distance of the weights, whole batch against four micro-batches; the logs agree."""
    start = torch.cat([p.detach().flatten() for p in make(STUDENTS[student]).parameters()])
    whole = distil(folder / "a", make(STUDENTS[student]), trainer=trainer, **options)
    split = distil(
        folder / "b", make(STUDENTS[student]), trainer=trainer,
        **options | {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4},
    )  # fmt: skip
    assert whole.state.global_step == split.state.global_step == 3
    a, b = weights(whole), weights(split)
    assert (a - start).norm() > 1e-3 * start.norm(), "the three steps must move the weights"
    for x, y in zip(rows(whole), rows(split), strict=True):
        del x["epoch"], y["epoch"]  # Trainer's own counts micro-batches
        if trainer is GDKDTrainer:
            assert x == pytest.approx(y, rel=1e-4, abs=1e-5)
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("loss", ["kd", "dkd", "gdkd", "gdkd3", "ce"])
def test_accumulation_does_not_change_the_steps(tmp_path, student, loss):
    assert update_error(tmp_path, student, loss=loss) <= 1e-5


@pytest.mark.parametrize("options", [{"label_smoothing_factor": 0.1}, {"soft": True}, {"loss": "ce", "soft": True}])
@pytest.mark.parametrize("student", ["vit", "plain"])
def test_accumulation_with_smoothed_and_soft_labels(tmp_path, student, options):
    options = dict(options)
    data = make_data(soft=options.pop("soft", False))
    assert update_error(tmp_path, student, data=data, **options) <= 1e-5


@pytest.mark.parametrize("loss", ["gdkd", "ce"])
def test_accumulation_under_adamw_and_clipping(tmp_path, loss):
    options = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 1.0}
    assert update_error(tmp_path, "vit", loss=loss, **options) <= 1e-5


def test_accumulation_while_the_weight_grows(tmp_path):
    """The ramp, too, is that of the optimizer step, whatever part of the micro-batches is over."""
    assert update_error(tmp_path, "plain", kd_warmup_epochs=1.0, kd_weight=5.0) <= 1e-5


def test_mean_of_means_would_fail(tmp_path):
    """The check above can fail: the mean over micro-batches of their means is another step."""

    class MeanOfMeans(InOrder):
        loss_is_scaled_for_ga = False

        def get_batch_samples(self, *args):
            return super().get_batch_samples(*args)[0], None

    assert update_error(tmp_path, "plain", trainer=MeanOfMeans) > 1e-4


# The loss, by hand


def terms_by_hand(student, teacher, data, loss="gdkd", smoothing=0.0, **options):
    """ce and kd, means over the samples of `data`."""
    pixels = torch.stack([row["pixel_values"] for row in data])
    labels = torch.stack([row["labels"] for row in data])
    logits = student(pixels)
    logits = getattr(logits, "logits", logits)
    with torch.no_grad():
        teacher_logits = teacher(pixels)
    ce = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    distillation = build_loss(loss, **options)
    parts = {k: v.mean() for k, v in distillation.parts(logits, teacher_logits, labels).items()}
    return ce, distillation(logits, teacher_logits, labels), parts


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("loss, options", [
    ("kd", {"temperature": 4.0}), ("dkd", {"alpha": 1.0, "beta": 2.0}), ("gdkd", {"k": 2, "w1": 0.5}),
    ("gdkd3", {"k": 3}), ("dist", {"gamma": 1.0}), ("mlkd", {"temperatures": [1.0, 2.0]}),
    ("nkd", {"gradient_scaling": 2.0}),
])  # fmt: skip
def test_training_is_the_plain_loop(tmp_path, student, loss, options):
    data, smoothing = make_data(), 0.1
    trainer = distil(
        tmp_path, make(STUDENTS[student]), data=data, loss=loss, ce_weight=0.3, kd_weight=0.7,
        label_smoothing_factor=smoothing, **options,
    )  # fmt: skip
    model, teacher = make(STUDENTS[student]).train(), make(NormedTeacher, 1).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for start, row in zip((0, 12, 24), rows(trainer), strict=True):
        ce, kd, parts = terms_by_hand(model, teacher, data[start : start + 12], loss, smoothing, **options)
        total = 0.3 * ce + 0.7 * kd
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        expected = {"loss": total, "ce": ce, "kd": kd}
        if len(parts) > 1:
            expected |= {f"{loss}_kd" if name == "kd" else name: part for name, part in parts.items()}
        for name, value in expected.items():
            assert row[name] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None))
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
    by_hand = torch.cat([p.detach().flatten() for p in model.parameters()])
    # dist has steep gradients where logits are nearly equal: the machine's rounding shows in single weights.
    assert (weights(trainer) - by_hand).norm() / by_hand.norm() <= 1e-4


def test_a_datasets_dataset(tmp_path):
    data = make_data()
    columns = {key: torch.stack([row[key] for row in data]) for key in ("pixel_values", "labels")}
    table = Dataset.from_dict({k: v.tolist() for k, v in columns.items()}).with_format("torch")
    same = distil(tmp_path / "b", data=data)
    torch.testing.assert_close(weights(distil(tmp_path / "a", data=table)), weights(same))


def test_without_ce_no_labels_are_needed(tmp_path):
    data = [{"pixel_values": row["pixel_values"]} for row in make_data()]
    trainer = distil(tmp_path / "a", data=data, ce_weight=0.0)
    torch.testing.assert_close(weights(trainer), weights(distil(tmp_path / "b", ce_weight=0.0)))
    assert "ce" not in rows(trainer)[0]


# The schedule


@pytest.mark.parametrize("warmup, skip", [(1.0, 0.0), (0.5, 1.0), (0.0, 0.5), (0.0, 0.0), (10.0, 0.0)])
def test_ramp_in_fractional_epochs(tmp_path, warmup, skip):
    trainer = distil(
        tmp_path, num_train_epochs=2, kd_warmup_epochs=warmup, kd_skip_epochs=skip, kd_weight=0.7, ce_weight=0.4
    )
    epochs = [0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3]  # before each step
    assert len(rows(trainer)) == 6
    for epoch, row in zip(epochs, rows(trainer), strict=True):
        ramp = 0.0 if epoch < skip - 1e-9 else 1.0 if warmup == 0 else min((epoch - skip) / warmup, 1.0)
        assert row["kd_ramp"] == pytest.approx(ramp, abs=1e-9)
        assert ("kd" in row) == (ramp > 0), "what has no weight is not computed"
        assert row["loss"] == pytest.approx(0.4 * row["ce"] + 0.7 * ramp * row.get("kd", 0.0), rel=1e-5)


@pytest.mark.parametrize("step", [2, 3, 4])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_resumed_is_uninterrupted(tmp_path, step, accumulate):
    """In the middle of an epoch and at its end; weights bit for bit, and the first log after it."""
    options = {
        "num_train_epochs": 3, "kd_warmup_epochs": 2.0, "kd_skip_epochs": 0.5, "optim": "adamw_torch",
        "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "trainer": GDKDTrainer,
        "per_device_train_batch_size": 12 // accumulate, "gradient_accumulation_steps": accumulate,
    }  # fmt: skip
    straight = distil(tmp_path / "a", make(vit), **options)
    distil(tmp_path / "b", make(vit), callbacks=[StopAt(step)], **options)
    checkpoint = str(tmp_path / "b" / f"checkpoint-{step}")
    resumed = distil(tmp_path / "b", make(vit, 9), resume=checkpoint, **options)
    assert torch.equal(weights(straight), weights(resumed))
    assert rows(straight) == rows(resumed)
    assert straight.state.global_step == resumed.state.global_step == 9


def test_true_resumes_from_the_last_complete_checkpoint(tmp_path):
    straight = distil(tmp_path / "a", num_train_epochs=2)
    distil(tmp_path / "b", num_train_epochs=2, callbacks=[StopAt(2)])
    (tmp_path / "b" / "checkpoint-4").mkdir()
    resumed = distil(tmp_path / "b", num_train_epochs=2, resume=True)
    assert torch.equal(weights(straight), weights(resumed))
    assert rows(resumed)[1:] == rows(straight)[1:]


def test_a_resumed_run_removes_the_incomplete_checkpoints_that_come_later(tmp_path):
    """Else rotation would count them. Complete ones are never removed without a flag."""
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1}
    first = distil(tmp_path, **options)
    (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    start = str(tmp_path / "checkpoint-2")
    with pytest.raises(InputError, match=r"would replace .*checkpoint-6: .*--overwrite"):
        first.train(start)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 6
    for name in ("checkpoint-3", "checkpoint-5", "checkpoint-6"):
        shutil.rmtree(tmp_path / name)
    distil(tmp_path, resume=start, callbacks=[StopAt(3)], **options)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{i}" for i in (1, 2, 3)}


class SavesTwice(InOrder):
    """Saves at every step, and once more before the next, as it does when that has a loss that is not finite."""

    def save_model(self, *args, **kwargs):
        self.saved = [*getattr(self, "saved", []), self.state.global_step]
        return super().save_model(*args, **kwargs)

    def training_step(self, *args, **kwargs):
        self.save_state()
        return super().training_step(*args, **kwargs)


def test_a_checkpoint_is_not_written_over(tmp_path):
    """A kill in the middle of that could cost the only complete one."""
    options = {"trainer": SavesTwice, "save_strategy": "steps", "save_steps": 1}
    trainer = distil(tmp_path, **options)
    assert trainer.saved == [0, 1, 2, 3]
    shutil.rmtree(tmp_path / "checkpoint-3")
    resumed = distil(tmp_path, resume=str(tmp_path / "checkpoint-2"), **options)
    assert resumed.saved == [3]
    with pytest.raises(InputError, match=r"already holds a run.*train\(overwrite=True\)"):
        trainer.train()
    trainer.train(overwrite=True)
    assert trainer.saved == [0, 1, 2, 3, 0, 1, 2, 3]


def test_evaluation_does_not_change_the_training(tmp_path):
    """Of a student with dropout: evaluation draws none of the training's random numbers."""
    ends = []
    for strategy in ("no", "steps"):
        options = {"num_train_epochs": 2, "eval_strategy": strategy, "eval_steps": 1}
        ends.append(weights(distil(tmp_path / strategy, make(NormedTeacher), **options)))
    assert torch.equal(*ends)


def test_workers_do_not_change_the_training(tmp_path):
    """Of a student with dropout: starting them, which a resumed run does once more, draws none of its numbers."""
    ends = []
    for workers, persist in ((0, False), (1, False), (1, True)):
        options = {"dataloader_num_workers": workers, "dataloader_persistent_workers": persist}
        ends.append(weights(distil(tmp_path, make(NormedTeacher), num_train_epochs=2, **options)))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("student", STUDENTS)
def test_best_model_is_loaded_at_the_end(tmp_path, student):
    class FirstIsBest(InOrder):
        def evaluate(self, *args, **kwargs):
            return super().evaluate(*args, **kwargs) | {"eval_score": -self.state.global_step}

    trainer = distil(
        tmp_path, make(STUDENTS[student]), trainer=FirstIsBest, num_train_epochs=3, eval_strategy="epoch",
        save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="score", greater_is_better=True,
    )  # fmt: skip
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(losses) == 3 and losses[0] != pytest.approx(losses[2], rel=1e-4)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[0], rel=1e-5)


def test_checkpoint_of_another_model(tmp_path):
    distil(tmp_path, make(convnext), save_strategy="epoch")
    with pytest.raises(InputError, match="is of another model"):
        distil(tmp_path, make(vit), resume=str(tmp_path / "checkpoint-3"))


# The log


class Spy(InOrder):
    """Keeps every micro-batch's logits and labels."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        with torch.no_grad():
            self.seen = [*getattr(self, "seen", []), (inputs, model(inputs["pixel_values"]))]
        return super().compute_loss(model, inputs, *args, **kwargs)


def means_by_hand(seen, teacher, loss):
    """Means over all the samples of these micro-batches."""
    terms = {}
    for inputs, logits in seen:
        labels, kd = inputs["labels"], build_loss(loss, reduction="none")
        teacher_logits = teacher.model(inputs["pixel_values"])
        values = {"ce": F.cross_entropy(logits, labels, reduction="none"), "kd": kd(logits, teacher_logits, labels)}
        for name, value in (values | kd.parts(logits, teacher_logits, labels)).items():
            terms.setdefault(name, []).append(value)
    return {name: torch.cat(values).mean().item() for name, values in terms.items()}


PARTS = {
    "kd": {"kd"},
    "dkd": {"kd", "tckd", "nckd"},
    "gdkd": {"kd", "high", "low_top", "low_other"},
    "gdkd3": {"kd", "high", "low_top", "low_other"},
}


@pytest.mark.parametrize("loss", PARTS)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_logged_parts_are_means_over_samples(tmp_path, loss, accumulate):
    """A log every 2 steps, over 2 epochs of 12 + 12 + 7 samples: one interval crosses the ragged end."""
    micro = 12 // accumulate
    trainer = distil(
        tmp_path, trainer=Spy, loss=loss, num_train_epochs=2, logging_steps=2,
        per_device_train_batch_size=micro, gradient_accumulation_steps=accumulate,
    )  # fmt: skip
    steps = 2 * [n for n in ([1, 1, 1] if accumulate == 1 else [4, 4, 3])]
    assert len(trainer.seen) == sum(steps) and len(rows(trainer)) == 3
    for i, row in enumerate(rows(trainer)):
        seen = trainer.seen[sum(steps[: 2 * i]) : sum(steps[: 2 * i + 2])]
        expected = means_by_hand(seen, trainer.teacher, loss)
        assert set(expected) == PARTS[loss] | {"ce"}
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_first_log_after_resume_counts_from_there(tmp_path):
    options = {"trainer": Spy, "num_train_epochs": 2, "logging_steps": 3}
    distil(tmp_path, callbacks=[StopAt(2)], **options)
    resumed = distil(tmp_path, resume=str(tmp_path / "checkpoint-2"), **options)
    row, expected = rows(resumed)[0], means_by_hand(resumed.seen[:1], resumed.teacher, "gdkd")
    assert row["step"] == 3
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert row["loss"] == pytest.approx(row["ce"] + row["kd"], rel=1e-4)


def test_a_term_that_begins_between_two_logs(tmp_path):
    """Its mean is over the samples that it was computed for, those of the others over all."""
    single, joined = (rows(distil(tmp_path / str(n), logging_steps=n, kd_skip_epochs=0.5)) for n in (1, 3))
    assert ["kd" in row for row in single] == [False, False, True]
    ce = sum(size * row["ce"] for size, row in zip((12, 12, 7), single, strict=True)) / SAMPLES
    assert joined[0]["ce"] == pytest.approx(ce, rel=1e-5)
    assert joined[0]["kd"] == pytest.approx(single[2]["kd"], rel=1e-5)


def test_training_twice_begins_a_new_log(tmp_path):
    trainer = distil(tmp_path, trainer=Spy, logging_steps=2)  # the third step is left unlogged
    trainer.seen = []
    trainer.train()
    expected = means_by_hand(trainer.seen[:2], trainer.teacher, "gdkd")
    row = [row for row in rows(trainer) if row["step"] == 2][-1]
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_no_number_leaves_the_device_between_logs(tmp_path, monkeypatch):
    """`compute_loss` reads no tensor's value after the first batch, where the teacher's logits are checked."""
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, _m=method, _n=name, **k: (reads.append(_n), _m(self, *a, **k))[1]
        )

    class Watch(InOrder):
        def compute_loss(self, *args, **kwargs):
            reads.clear()
            loss = super().compute_loss(*args, **kwargs)
            self.counts = [*getattr(self, "counts", []), list(reads)]
            return loss

    trainer = distil(tmp_path, trainer=Watch, num_train_epochs=2, logging_steps=100)
    assert trainer.counts[0] == ["tolist"] and len(trainer.counts) == 6
    assert not any(trainer.counts[1:])


# The teacher


def files(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def test_teacher_is_frozen_and_leaves_no_trace(tmp_path):
    teacher = make(NormedTeacher, 1).train()
    before = copy.deepcopy(teacher.state_dict())
    trainer = distil(
        tmp_path, make(vit), teacher=teacher, teacher_dtype="bfloat16", num_train_epochs=2, save_strategy="epoch",
        optim="adamw_torch", learning_rate=1e-3,
    )  # fmt: skip
    trainer.save_model()
    assert not any(module.training for module in teacher.modules()) and trainer.model.training
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    for name, value in teacher.state_dict().items():  # BatchNorm statistics too
        assert torch.equal(value, before[name].to(value.dtype)), name
    owned = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in trainer.model.parameters()}
    assert trainer.model.state_dict().keys() == make(vit).state_dict().keys()
    saved = [path for path in files(tmp_path) if path.name == "model.safetensors"]
    assert len(saved) == 3
    make(vit).save_pretrained(tmp_path / "alone")  # renames some
    with safe_open(tmp_path / "alone" / "model.safetensors", "pt") as tensors:
        names = set(tensors.keys())
    for path in saved:
        with safe_open(path, "pt") as tensors:
            assert set(tensors.keys()) == names
    for path in files(tmp_path):
        if path.name == "optimizer.pt":
            assert len(torch.load(path, weights_only=True)["state"]) == len(owned)


def test_teacher_runs_once_a_batch_and_not_in_evaluation(tmp_path):
    teacher = make(NormedTeacher, 1)
    trainer = distil(
        tmp_path, make(vit), teacher=teacher, num_train_epochs=2, eval_strategy="epoch",
        per_device_train_batch_size=3, gradient_accumulation_steps=4,
    )  # fmt: skip
    assert teacher.calls == 2 * 11
    trainer.evaluate()
    trainer.predict(make_data(5))
    assert teacher.calls == 2 * 11


@pytest.mark.parametrize("options, calls", [
    ({"kd_skip_epochs": 2.0}, 1 + 3), ({"kd_skip_epochs": 1.0, "kd_warmup_epochs": 1.0}, 1 + 5),
    ({"kd_weight": 0.0}, 1),
])  # fmt: skip
def test_teacher_does_not_run_while_its_weight_is_0(tmp_path, options, calls):
    """But once, at the first batch, so that bad input is an error at once; the log's means are over what ran."""
    teacher = make(NormedTeacher, 1)
    trainer = distil(tmp_path / "a", teacher=teacher, num_train_epochs=3, logging_steps=2, **options)
    assert teacher.calls == calls
    ran = [row for row in rows(trainer) if row["kd_ramp"] > 0]
    assert all("kd" in row and "high" in row for row in ran) == any("kd" in row for row in rows(trainer))
    assert all("ce" in row for row in rows(trainer))
    with pytest.raises(InputError, match="teacher has 9 classes, student 7"):
        distil(tmp_path / "b", teacher=Plain(9), **options)


def test_no_loss_at_all_for_a_while(tmp_path):
    """Without cross-entropy, and the distillation skipped: the student stays, and the run goes on."""
    trainer = distil(tmp_path, ce_weight=0.0, kd_skip_epochs=1.0)
    assert torch.equal(weights(trainer), torch.cat([p.flatten() for p in make(Plain).parameters()]))
    assert [row["loss"] for row in rows(trainer)] == [0.0] * 3


@pytest.mark.parametrize("batch", [5, 1])
@pytest.mark.parametrize("build", STUDENTS.values(), ids=STUDENTS)
def test_evaluation_and_prediction_without_labels(tmp_path, build, batch):
    args = config(tmp_path, "ce", per_device_eval_batch_size=batch)
    trainer = GDKDTrainer(make(build), None, args, compute_metrics=lambda p: {"n": len(p.predictions)})
    data = [{"pixel_values": row["pixel_values"]} for row in make_data(6)]
    out = trainer.predict(data)
    logits = make(build).eval()(torch.stack([row["pixel_values"] for row in data]))
    expected = getattr(logits, "logits", logits).detach()
    torch.testing.assert_close(torch.tensor(out.predictions), expected, rtol=1e-4, atol=1e-5)
    assert out.label_ids is None and "eval_loss" not in trainer.evaluate(data)


@pytest.mark.parametrize("build", STUDENTS.values(), ids=STUDENTS)
@pytest.mark.parametrize("loss", ["ce", "gdkd"])
def test_evaluation_is_the_plain_cross_entropy(tmp_path, build, loss):
    teacher = None if loss == "ce" else NormedTeacher()
    seen = []
    weighted = {"class_weights": [9.0] + [1.0] * (CLASSES - 1), "label_smoothing_factor": 0.3}
    args = config(tmp_path, loss, ce_weight=0.0 if loss == "gdkd" else 1.0, **weighted)
    trainer = GDKDTrainer(make(build), teacher, args, compute_metrics=lambda p: seen.append(p) or {"n": 1.0})
    data = make_data(11)
    logits = make(build).eval()(torch.stack([row["pixel_values"] for row in data]))
    logits = getattr(logits, "logits", logits)
    labels = torch.stack([row["labels"] for row in data])
    metrics = trainer.evaluate(data)
    assert metrics["eval_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    torch.testing.assert_close(torch.tensor(seen[0].predictions), logits.detach(), rtol=1e-4, atol=1e-5)
    assert seen[0].label_ids.tolist() == labels.tolist()


def test_teacher_dtype_holds_under_autocast():
    pixels = torch.randn(4, 3, SIZE, SIZE)
    free, fixed = Teacher(make(NormedTeacher, 1)), Teacher(make(NormedTeacher, 1), dtype=torch.float32)
    expected = free({"pixel_values": pixels})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert free({"pixel_values": pixels}).dtype == torch.bfloat16
        assert torch.equal(fixed({"pixel_values": pixels}), expected)


def test_teacher_with_columns_and_renormalize(tmp_path):
    """A teacher of more classes, in another order, that wants other means: as if it had been built so."""
    big, pixels = make(lambda: NormedTeacher(CLASSES + 4), 1).eval(), torch.randn(5, 3, SIZE, 3)
    columns = torch.tensor([10, 0, 3, 2, 7, 5, 1])
    scale, shift = torch.tensor([0.5, 2.0, 1.0]), torch.tensor([0.1, -0.3, 0.0])
    pixels = torch.randn(5, 3, SIZE, SIZE)
    by_hand = big(torch.stack([pixels[:, c] * scale[c] + shift[c] for c in range(3)], 1))[:, columns]
    teacher = Teacher(big, columns=columns, renormalize=(scale, shift))
    assert teacher.num_labels == CLASSES
    torch.testing.assert_close(teacher({"pixel_values": pixels}), by_hand)
    torch.testing.assert_close(teacher.to(torch.device("cpu"))({"pixel_values": pixels}), by_hand)
    trainer = distil(tmp_path, make(vit), teacher=teacher, k=CLASSES - 1)
    assert len(rows(trainer)) == 3


def test_renormalize_does_not_follow_the_width():
    """Three pixels wide: a shift along the wrong axis would not be an error."""
    teacher = Teacher(nn.Flatten(), renormalize=(torch.ones(3), torch.tensor([1.0, 2.0, 3.0])))
    got = teacher({"pixel_values": torch.zeros(1, 3, 1, 3)})
    assert got.tolist() == [[1, 1, 1, 2, 2, 2, 3, 3, 3]]


def test_teacher_prefers_its_own_view():
    """Which is normalised as it wants already."""
    batch = {"pixel_values": torch.zeros(1, 3, 1, 1), "teacher_pixel_values": torch.ones(1, 3, 1, 1)}
    for renormalize in (None, (torch.full((3,), 2.0), torch.ones(3))):
        assert Teacher(nn.Flatten(), renormalize=renormalize)(batch).tolist() == [[1, 1, 1]]


# Bad input


class NaNTeacher(NormedTeacher):
    def forward(self, pixel_values):
        return super().forward(pixel_values).index_fill(0, torch.tensor([1]), math.nan)


@pytest.mark.parametrize("build, options, said", [
    (vit, {"teacher": None}, "loss gdkd needs a teacher"),
    (vit, {"loss": "ce", "teacher": NormedTeacher()}, "loss ce takes no teacher"),
    (vit, {"teacher": vit(9)}, "the teacher has 9 classes and the student 7"),
    (vit, {"teacher": Teacher(vit(9), columns=torch.arange(3))}, "the teacher has 3 classes and the student 7"),
    (vit, {"teacher": vit(), "k": 7}, "k is 7 with 7 classes"),
    (vit, {"loss": "gdkd3", "k": 8}, "k is 8 with 7 classes"),
    (Plain, {"teacher": vit(), "k": 7}, "k is 7 with 7 classes"),
    (vit, {"teacher": "no/such/folder"}, "no folder no/such/folder"),
])  # fmt: skip
def test_bad_input_before_training(tmp_path, build, options, said):
    with pytest.raises(InputError) as caught:
        options = {"teacher": NormedTeacher()} | options
        teacher = options.pop("teacher")
        GDKDTrainer(make(build), teacher, config(tmp_path, **options), train_dataset=make_data())
    assert said in str(caught.value) and "\n" not in str(caught.value)


UNLABELLED = [{"pixel_values": row["pixel_values"]} for row in make_data()]


@pytest.mark.parametrize("options, said", [
    ({"teacher": NaNTeacher()}, "NaN or infinite for 1 of the first batch's 12 images (rows [1])"),
    ({"teacher": Plain(9)}, "teacher has 9 classes, student 7"),
    ({"k": 7}, "k is 7 with 7 classes"),
    ({"data": UNLABELLED}, "the batch has no labels"),
    ({"data": UNLABELLED, "loss": "ce"}, "the batch has no labels"),
    ({"data": UNLABELLED, "loss": "ce", "ce_weight": 0.0}, "the batch has no labels"),
    ({"data": UNLABELLED, "loss": "dkd", "ce_weight": 0.0}, "labels"),
])  # fmt: skip
def test_bad_input_at_the_first_batch(tmp_path, options, said):
    """What cannot be known earlier, for a plain module does not tell its classes; no step is taken."""
    student = make(Plain)
    with pytest.raises(InputError) as caught:
        distil(tmp_path, student, **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert torch.equal(student.head.weight, make(Plain).head.weight)


# What is saved


def test_no_pickled_arguments_and_no_token_anywhere(tmp_path):
    trainer = distil(tmp_path, make(vit), hub_token=SECRET, save_strategy="steps", save_steps=2)
    trainer.save_model()
    names = {path.name for path in files(tmp_path)}
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= names
    assert "training_args.bin" not in names
    assert trainer.args.hub_token == SECRET
    assert not [path for path in files(tmp_path) if SECRET.encode() in path.read_bytes()]


def test_pickled_arguments_hold_no_token(tmp_path):
    """Trainer pickles them by itself into what it pushes during training."""
    args = config(tmp_path, hub_token=SECRET)
    torch.save(args, tmp_path / "training_args.bin")
    assert SECRET.encode() not in (tmp_path / "training_args.bin").read_bytes()
    again = pickle.loads(pickle.dumps(args))
    assert again.hub_token is None and again.loss == "gdkd" and args.hub_token == SECRET


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_timm_student(tmp_path, name):
    student = load_model(name, init="random", num_labels=CLASSES)
    g = torch.Generator().manual_seed(0)
    size = student.config.to_dict().get("pretrained_cfg", {}).get("input_size", [3, 160, 160])[-1]
    data = [
        {"pixel_values": torch.randn(3, size, size, generator=g), "labels": torch.tensor(i % CLASSES)} for i in range(4)
    ]
    trainer = GDKDTrainer(
        student,
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES)),
        config(tmp_path, per_device_train_batch_size=4, per_device_eval_batch_size=4),
        train_dataset=data,
        eval_dataset=data,
    )
    trainer.train()
    trainer.save_model()
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    pixels = torch.stack([row["pixel_values"] for row in data])
    with torch.no_grad():
        torch.testing.assert_close(again(pixels).logits, trainer.model.eval()(pixels).logits)
    labels = torch.stack([row["labels"] for row in data])
    expected = F.cross_entropy(again(pixels).logits, labels).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_class_weights_fit_the_classes(tmp_path):
    args = GDKDConfig(output_dir=str(tmp_path), loss="ce", class_weights=[1.0, 2.0], report_to="none", use_cpu=True)
    with pytest.raises(InputError, match="there are 2 class_weights and 7 classes"):
        GDKDTrainer(vit(), None, args)


def test_more_processes_than_images_are_refused(tmp_path, monkeypatch):
    args = config(tmp_path, "ce")
    monkeypatch.setattr(GDKDConfig, "world_size", 4)
    GDKDTrainer(make(Plain), None, args, train_dataset=make_data(4))
    with pytest.raises(InputError, match="there are 4 processes and 3 training images: start fewer processes"):
        GDKDTrainer(make(Plain), None, args, train_dataset=make_data(3))
