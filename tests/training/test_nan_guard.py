"""A loss or a gradient that is not finite ends the run before it reaches the weights; the state before is saved."""

import json
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import (
    InOrder,
    Normed,
    NormedTeacher,
    Plain,
    Record,
    StopAt,
    config,
    distil,
    make,
    make_data,
    weights,
)
from torch import nn
from transformers import TrainerCallback

from hf_gdkd import GDKDTrainer
from hf_gdkd.errors import TrainingError
from hf_gdkd.training import checkpoint_trainer
from hf_gdkd.training.nan_guard import NaNGuard
from hf_gdkd.training.replay import repeat_step


class Spoiled(NormedTeacher):
    """Its logits are NaN for the images whose first pixel says so."""

    def forward(self, pixel_values):
        logits = super().forward(pixel_values.nan_to_num(0.0))
        return torch.where(pixel_values[:, 0, 0, 0, None] == 99, torch.nan, logits)


def spoiled_data(pixel, value):
    data = [row | {"sample_id": 100 + i} for i, row in enumerate(make_data())]
    data[20] = data[20] | {"pixel_values": data[20]["pixel_values"].clone()}  # the second step: rows 12 to 23
    data[20]["pixel_values"][pixel] = value
    return data


@pytest.mark.parametrize("split", [{}, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}])
@pytest.mark.parametrize(
    "pixel, value, parts", [((0, 0, 0), 99.0, "kd, high, low_top, low_other"), (..., torch.inf, "ce, kd, high")]
)
def test_the_run_ends_with_the_state_before_the_step(tmp_path, split, pixel, value, parts):
    record = Record()
    data = spoiled_data(pixel, value)
    with pytest.raises(TrainingError, match=f"at step 2 the loss is not finite in {parts}.* rows 112, 113, .* 123: .*"):
        distil(tmp_path, make(Normed), teacher=make(Spoiled, 1), data=data, callbacks=[record], **split)
    saved = load_file(tmp_path / "checkpoint-1/model.safetensors")
    assert len(record.steps) == 1
    names = [name for name in saved if name != "norm.num_batches_tracked"]
    torch.testing.assert_close({n: saved[n] for n in names}, {n: record.steps[0][n] for n in names}, rtol=0, atol=0)
    assert all(t.isfinite().all() for t in saved.values())


@pytest.mark.parametrize("loss", [{}, {"loss": "gdkd+kd", "kd_weight": "auto"}])
def test_the_state_can_be_gone_on_from(tmp_path, loss):
    """With the image mended, the resumed run is the run that was never spoiled."""
    with pytest.raises(TrainingError, match="checkpoint-1"):
        distil(tmp_path / "a", make(Normed), teacher=make(Spoiled, 1), data=spoiled_data((0, 0, 0), 99.0), **loss)
    options = {"teacher": make(Spoiled, 1), "data": make_data()} | loss
    resumed = distil(tmp_path / "b", make(Normed, 8), resume=str(tmp_path / "a/checkpoint-1"), **options)
    whole = distil(tmp_path / "c", make(Normed), **options)
    torch.testing.assert_close(dict(resumed.model.state_dict()), dict(whole.model.state_dict()), rtol=0, atol=0)


def test_without_row_numbers_the_step_and_parts_are_named(tmp_path):
    data = [{key: row[key] for key in ("pixel_values", "labels")} for row in spoiled_data(..., torch.inf)]
    with pytest.raises(TrainingError, match=r"at step 2 the loss is not finite in ce: look at these images"):
        distil(tmp_path, loss="ce", data=data, trainer=InOrder)


def test_steps_without_any_loss_pass(tmp_path):
    """Without labels, before the distillation begins."""
    data = [{"pixel_values": row["pixel_values"]} for row in make_data()]
    trainer = distil(tmp_path, data=data, ce_weight=0.0, kd_skip_epochs=1, num_train_epochs=2)
    assert trainer.state.global_step == 6 and "kd" in trainer.state.log_history[-2]


@pytest.mark.parametrize("begins", [0, 1])  # before the distillation begins, a step without labels has no loss
def test_a_step_that_the_teacher_cannot_answer_can_be_repeated(tmp_path, begins):
    data = [{"pixel_values": row["pixel_values"]} for row in make_data()]
    data[20]["pixel_values"] = torch.full_like(data[20]["pixel_values"], torch.inf)
    options = {"ce_weight": 0.0, "kd_skip_epochs": begins, "num_train_epochs": 2}
    with pytest.raises(TrainingError, match="at step 2 the "):
        distil(tmp_path, data=data, **options)
    again = InOrder(make(Plain), make(NormedTeacher, 1), config(tmp_path / "b", **options), train_dataset=make_data())
    repeated = repeat_step(again, str(tmp_path / "checkpoint-1"))
    assert math.isnan(repeated["found"]["gradients"]) and ("kd" in repeated["found"]) == (begins == 0)


class Spike(torch.autograd.Function):
    """The identity, with a gradient that is not finite where the image says so."""

    @staticmethod
    def forward(ctx, x, pixels):
        ctx.bad = (pixels[:, 0, 0, 0] == 99).any()
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return (gradient * torch.inf if ctx.bad else gradient), None


class Spiked(nn.Module):
    """A student with BatchNorm and dropout, whose loss is always finite."""

    def __init__(self):
        super().__init__()
        self.drop, self.body = nn.Dropout(0.3), Normed()

    def forward(self, x):
        return Spike.apply(self.body(self.drop(x.clamp(max=2.0))), x)


SPIKED = {"loss": "ce", "trainer": InOrder, "save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2}


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("split", [{}, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}])
def test_a_gradient_that_is_not_finite(tmp_path, clip, split):
    """The weights saved are finite, no older checkpoint is rotated away, and the step can be repeated exactly."""
    options = SPIKED | split | {"max_grad_norm": clip, "save_total_limit": 1, "save_steps": 10}
    record = Record()
    with pytest.raises(
        TrainingError, match=r"at step 2 the gradients are not finite, its rows 112, 113, .*replay"
    ) as e:
        distil(tmp_path, make(Spiked), data=spoiled_data((0, 0, 0), 99.0), callbacks=[record], **options)
    checkpoint = tmp_path / "checkpoint-1"
    assert f"hf_gdkd.training.replay.repeat_step(trainer, '{checkpoint}') repeats the step" in str(e.value)
    assert "hf-gdkd replay" not in str(e.value)  # which needs the settings of a command
    saved = load_file(checkpoint / "model.safetensors")
    assert all(value.isfinite().all() for value in saved.values())
    torch.testing.assert_close(saved["body.body.head.weight"], record.steps[0]["body.body.head.weight"], rtol=0, atol=0)

    args = config(tmp_path / "again", **{name: value for name, value in options.items() if name != "trainer"})
    again = InOrder(make(Spiked, 7), None, args, train_dataset=make_data())
    repeated = repeat_step(again, str(checkpoint))
    assert repeated["step"] == 2 and not math.isfinite(repeated["found"]["gradients"])
    assert repeated["found"]["ce"] == pytest.approx(repeated["recorded"]["ce"], rel=1e-6)  # dropout included
    assert "body.body.head.weight" in repeated["gradients"]


def test_the_run_goes_on_exactly_with_random_numbers(tmp_path):
    """Of a shuffled run with dropout, stopped at the first step of an epoch or in the middle of one."""
    for name, bad in (("first", 0), ("middle", 1)):
        options = SPIKED | {"trainer": GDKDTrainer, "save_strategy": "no"}
        straight = distil(tmp_path / name / "straight", make(Spiked), data=make_data(), **options)
        stop = StopsAt(3 + bad)
        with pytest.raises(TrainingError, match=f"at step {4 + bad} the gradients"):
            distil(tmp_path / name / "run", make(Spiked), data=make_data(), callbacks=[stop], **options)
        resumed = distil(tmp_path / name / "run", make(Spiked, 5), resume=True, data=make_data(), **options)
        torch.testing.assert_close(weights(resumed), weights(straight), rtol=0, atol=0)


class StopsAt(TrainerCallback):
    """After so many steps, the next step's gradients are found not to be finite."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.steps:
            next(model.parameters()).register_hook(lambda gradient: gradient * torch.nan)


FUSED = {"optim": "adamw_torch_fused", "learning_rate": 0.01, "lr_scheduler_type": "linear", "num_train_epochs": 2}
FUSED_SGD = {"lr": 0.3, "momentum": 0.9, "fused": True}
FUSED |= {"logging_strategy": "no", "ema_decay": 0.9, "trainer": GDKDTrainer}


@pytest.mark.parametrize("loss", [{"loss": "ce"}, {"loss": "gdkd+kd", "kd_weight": "auto"}])
@pytest.mark.parametrize("bad", [2, 3, 4])  # in an epoch, its last, the first of the next
def test_a_fused_optimizer_leaves_the_step_out_and_nobody_waits(tmp_path, bad, loss):
    """It is found after the next step has begun; the checkpoint is that of a run that was saved before it."""
    record, options = Record(), FUSED | loss
    distil(tmp_path / "good", make(Spiked), callbacks=[StopAt(bad - 1)], **options)
    with pytest.raises(TrainingError, match=f"at step {bad} the gradients are not finite.*checkpoint-{bad - 1},"):
        distil(tmp_path / "bad", make(Spiked), callbacks=[record, StopsAt(bad - 1)], **options)
    assert len(record.steps) == bad
    for name in ("head.weight", "head.bias"):
        assert torch.equal(*(step[f"body.body.{name}"] for step in record.steps[-2:]))
    good, stopped = (tmp_path / run / f"checkpoint-{bad - 1}" for run in ("good", "bad"))
    for name in ("model", "raw_weights", *(["projections"] if "kd_weight" in loss else [])):
        same(*(load_file(folder / f"{name}.safetensors") for folder in (good, stopped)))
    for name in ("optimizer.pt", "scheduler.pt"):
        same(*(torch.load(folder / name) for folder in (good, stopped)))
    same(*(torch.load(folder / "rng_state.pth", weights_only=False)["cpu"] for folder in (good, stopped)))
    states = [json.loads((folder / "trainer_state.json").read_text()) for folder in (good, stopped)]
    assert len({(state["global_step"], state["epoch"]) for state in states}) == 1


def same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("when", ["logged", "saved", "saved by a callback", "evaluated by a callback"])
def test_nothing_is_logged_or_saved_after_such_a_step(tmp_path, when):
    class Saves(TrainerCallback):
        trainer = None

        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = when == "saved" and state.global_step == 2
            if when == "evaluated by a callback" and state.global_step == 2:
                self.trainer.evaluate(make_data())

        def on_step_begin(self, args, state, control, **kwargs):
            if when == "saved by a callback" and state.global_step == 2:
                self.trainer.save_state()

    args = config(tmp_path, **{name: value for name, value in FUSED.items() if name != "trainer"} | {"loss": "ce"})
    args.logging_strategy, args.logging_steps = ("steps", 2) if when == "logged" else ("no", 500)
    trainer = GDKDTrainer(make(Plain), None, args, train_dataset=make_data(), callbacks=[saves := Saves(), StopsAt(1)])
    saves.trainer = trainer
    with pytest.raises(TrainingError, match="at step 2 the gradients"):
        trainer.train()
    assert trainer.state.log_history == [] and trainer.state.global_step == 1
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_fused_sgd_begins_without_momentum(tmp_path, monkeypatch):
    """Also where its first step is left out: it would keep memory that it never wrote to."""
    student = make(Plain)
    sgd = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, fused=True)
    args = config(tmp_path, "ce", logging_strategy="no")
    trainer = GDKDTrainer(
        student, None, args, train_dataset=make_data(), callbacks=[StopsAt(0)], optimizers=(sgd, None)
    )
    with pytest.raises(TrainingError, match="at step 1 the gradients"):
        trainer.train()
    state = torch.load(tmp_path / "checkpoint-0/optimizer.pt")["state"]
    assert [each["momentum_buffer"].count_nonzero() for each in state.values()] == [0, 0]
    sgd = {"optim": "sgd", "optim_args": "momentum=0.9", "loss": "ce"}
    straight = distil(tmp_path / "plain", make(Plain), **sgd)
    monkeypatch.setattr(InOrder, "get_optimizer_cls_and_kwargs", lambda *_: (torch.optim.SGD, FUSED_SGD))
    fused = distil(tmp_path / "fused", make(Plain), **sgd)
    torch.testing.assert_close(weights(fused), weights(straight), rtol=1e-6, atol=1e-6)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """Spoiled by the optimizer itself: the good checkpoint stays, also with a limit of one."""

    class Spoils(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                with torch.no_grad():
                    next(model.parameters()).fill_(torch.inf)

    with pytest.raises(TrainingError, match=r"after step 2 the student's weights are not finite \(head.weight\)") as e:
        distil(tmp_path, callbacks=[Spoils()], **SPIKED | {"save_total_limit": 1})
    assert f"the last complete checkpoint is {tmp_path / 'checkpoint-1'}." in str(e.value)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    with pytest.raises(TrainingError, match="the weights before the step are not finite either and are not saved"):
        distil(tmp_path / "b", callbacks=[Spoils()], **SPIKED | {"save_strategy": "no"})
    assert not list((tmp_path / "b").glob("checkpoint-*"))


def test_processes_agree_that_weights_are_not_finite(tmp_path, monkeypatch):
    """Where each holds a part of the weights: one that saved alone would wait for the others for ever."""
    monkeypatch.setattr(checkpoint_trainer, "gather_object", lambda names: [*names, "of another process"])
    trainer = GDKDTrainer(make(Plain), None, config(tmp_path, "ce"), train_dataset=make_data())
    trainer.add_callback(StopsAt(1))
    trainer.add_callback(sharded := TrainerCallback())
    sharded.on_step_begin = lambda *args, **kwargs: setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(TrainingError, match="the weights before the step are not finite either and are not saved"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("scale, stops", [(65536.0, False), (1.0, True)])
def test_a_gradient_scaler_leaves_such_steps_out_itself(scale, stops):
    """As under fp16, until its factor cannot be the reason any more."""
    scaler = SimpleNamespace(is_enabled=lambda: True, get_scale=lambda: scale)
    accelerator = SimpleNamespace(scaler=scaler, num_processes=1, distributed_type="NO")
    guard = NaNGuard(SimpleNamespace(accelerator=accelerator, args=None))
    guard.forget()
    guard.note_norm(torch.tensor(torch.inf))
    guard.names, guard.sums, guard._step = ["ce"], torch.ones(1), SimpleNamespace(number=2)
    guard._take_back, guard._save = lambda step: None, lambda step, found: "saved."
    with pytest.raises(TrainingError, match="gradients are not finite") if stops else nullcontext():
        guard.on_pre_optimizer_step(None, None, None)
