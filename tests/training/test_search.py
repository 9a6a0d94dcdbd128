"""model_init and hyperparameter_search: each training follows its own model, arguments and data."""

from __future__ import annotations

import pytest
import torch
from tiny_training import InOrder, NormedTeacher, Plain, config, distil, make, make_data, rows, weights
from torch import nn
from transformers import TrainerCallback
from transformers.hyperparameter_search import ALL_HYPERPARAMETER_SEARCH_BACKENDS, HyperParamSearchBackendBase
from transformers.trainer_utils import HPSearchBackend

from hf_gdkd.errors import InputError
from hf_gdkd.losses import build_loss


class Conv(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.Tanh())
        self.head = nn.Linear(width, 7)

    def forward(self, pixel_values):
        return self.head(self.stage(pixel_values).mean((2, 3)))


class Ends(TrainerCallback):
    """The weights at the end of each training, of the model that was trained then."""

    def __init__(self):
        self.weights = []

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))


class Trial(dict):
    def __init__(self, number, params):
        super().__init__(params)
        self.number, self.params = number, params


class Grid(HyperParamSearchBackendBase):
    """A backend that trains with each of the given settings, as Optuna's does."""

    @staticmethod
    def is_available():
        return True

    def run(self, trainer, n_trials, direction, settings):
        logs = []
        for number, values in enumerate(settings):
            trainer.train(trial=Trial(number, values))
            logs.append(rows(trainer))
        return logs


@pytest.fixture
def search(monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.integrations.hp_params", dict)  # it asks for Optuna itself
    monkeypatch.setitem(ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.OPTUNA, Grid)

    def run(settings, build=Plain, teacher=NormedTeacher, **options):
        args = config(tmp_path, **options)
        trainer = InOrder(None, make(teacher, 1), args, train_dataset=make_data(), model_init=lambda: make(build),
                          callbacks=[ends := Ends()])  # fmt: skip
        space = {"hp_space": lambda trial: trial.params, "backend": "optuna"}
        return trainer, trainer.hyperparameter_search(**space, settings=settings), ends

    return run


def test_a_search_sees_the_losses_of_its_settings(search, tmp_path):
    """Each trial is the run with these settings alone: temperature, k, weights, moving average."""
    settings = [
        {"loss": "kd", "kd_weight": 0.25, "class_weights": [2.0] * 7, "temperature": 2.0},
        {"loss": "gdkd", "temperature": 1.0, "k": 2, "ema_decay": 0.5}, {"temperature": 4.0}, {"k": 5},
    ]  # fmt: skip
    trainer, logs, ends = search(settings, ema_decay=0.9, ce_weight=0.5)
    sofar = {"ema_decay": 0.9, "ce_weight": 0.5}
    for values, log, end in zip(settings, logs, ends.weights, strict=True):
        sofar |= values
        alone = distil(tmp_path / "alone", make(Plain), **sofar)
        assert [row["loss"] for row in log] == [row["loss"] for row in rows(alone)]
        assert not any(torch.equal(end, other) for other in ends.weights if other is not end)
    torch.testing.assert_close(weights(trainer), weights(alone), rtol=0, atol=0)
    first = [log[0]["kd"] for log in logs]
    assert len(set(first)) == 4
    data = make_data()[:12]
    pixels, labels = (torch.stack([row[key] for row in data]) for key in ("pixel_values", "labels"))
    with torch.no_grad():
        pair = make(Plain)(pixels), make(NormedTeacher, 1).eval()(pixels)
    for value, options in zip(first[1:], ({"temperature": 1.0, "k": 2}, {"temperature": 4.0, "k": 2}), strict=False):
        assert value == pytest.approx(build_loss("gdkd", **options)(*pair, labels).item(), rel=1e-5)


def test_losses_on_features_in_a_search(search):
    settings = [{"kd_weight": 1.0}, {"kd_weight": 1.0}, {"loss": "reviewkd"}, {"loss": "gdkd"}]
    options = {"loss": "fitnet", "optim": "adamw_torch", "learning_rate": 1e-3}
    trainer, logs, ends = search(settings, Conv, lambda: Conv(6), **options)
    assert torch.equal(ends.weights[0], ends.weights[1])
    assert all(name in log[-1] for name, log in zip(("fitnet", "fitnet", "reviewkd", "high"), logs, strict=True))
    assert not len(trainer.projections)
    owned = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in trainer.model.parameters()}


@pytest.mark.parametrize("setting, said", [({"k": 7}, "k is 7 with 7 classes"), ({"loss": "ce"}, "loss ce takes no t")])
def test_a_setting_that_does_not_fit(search, setting, said):
    with pytest.raises(InputError, match=said):
        search([setting])


def test_a_model_init_that_returns_the_teacher(tmp_path):
    models = [make(Plain), teacher := make(Plain, 1)]
    trainer = InOrder(None, teacher, config(tmp_path), train_dataset=make_data(), model_init=lambda: models.pop(0))
    with pytest.raises(InputError, match="the student and the teacher share weights"):
        trainer.train()


def test_model_init_with_a_moving_average(tmp_path):
    """Of the model that trains, not of the one that the trainer was made with."""
    args = config(tmp_path, ema_decay=0.5, eval_strategy="epoch")
    trainer = InOrder(
        None, make(NormedTeacher, 1), args, train_dataset=make_data(), eval_dataset=make_data(11),
        model_init=lambda: make(Plain),
    )  # fmt: skip
    trainer.train()
    assert torch.equal(weights(trainer), weights(distil(tmp_path, make(Plain), ema_decay=0.5)))
    evaluated = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row][-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluated)


def test_arguments_that_change_between_trainings(tmp_path):
    """Of one model: its projections and their optimizer state go, the student and its state stay."""
    args = config(tmp_path, "fitnet", optim="adamw_torch", learning_rate=1e-3)
    trainer = InOrder(make(Conv), make(lambda: Conv(6), 1), args, train_dataset=make_data())
    trainer.train()
    kept = trainer.distillation_loss
    trainer.train()
    assert trainer.distillation_loss is kept, "the projections learn on where nothing changed"
    trainer.args.loss = "reviewkd"
    trainer.train()
    assert "reviewkd" in rows(trainer)[-1] and trainer.distillation_loss is not kept
    owned = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for m in (trainer.model, trainer.projections) for p in m.parameters()}
    assert len(trainer.optimizer.state_dict()["state"]) == len(owned)
