"""The learning rate's steps down, and weight decay on all weights, by what they do to the weights."""

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from hf_gdkd import GDKDConfig, GDKDTrainer
from hf_gdkd.errors import InputError


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 3)
        self.norm.bias.data += 1

    def forward(self, x):
        return self.head(self.norm(x.flatten(1)))


class Rates(TrainerCallback):
    """The learning rate of every step."""

    def __init__(self):
        self.seen = []

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        self.seen.append(optimizer.param_groups[0]["lr"])


def train(folder, resume=None, **options):
    defaults = {
        "loss": "ce", "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
        "per_device_train_batch_size": 4, "save_strategy": "no", "report_to": "none", "use_cpu": True,
        "disable_tqdm": True,
    }  # fmt: skip
    data = [{"pixel_values": torch.randn(3, 2, 2), "labels": torch.tensor(i % 3)} for i in range(12)]  # 3 steps
    rates = Rates()
    args = GDKDConfig(output_dir=str(folder), **defaults | options)
    trainer = GDKDTrainer(Small(), None, args, train_dataset=data, callbacks=[rates])
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model, rates.seen


def test_learning_rate_steps_down(tmp_path):
    options = {"num_train_epochs": 4, "lr_decay_epochs": [1, 3], "save_strategy": "steps", "save_steps": 4}
    _, rates = train(tmp_path, **options)
    assert rates == pytest.approx([1.0] * 3 + [0.1] * 6 + [0.01] * 3)
    _, resumed = train(tmp_path / "again", resume=str(tmp_path / "checkpoint-4"), **options)
    assert resumed == pytest.approx(rates[4:])


def test_rate_and_fractions_of_epochs(tmp_path):
    _, rates = train(tmp_path, num_train_epochs=2, lr_decay_epochs=[2 / 3], lr_decay_rate=0.5)
    assert rates == pytest.approx([1.0] * 2 + [0.5] * 4)


@pytest.mark.parametrize("all_weights", [True, False])
def test_weight_decay(tmp_path, all_weights):
    """Without a gradient a step of SGD is w - lr * weight_decay * w, for the weights that decay."""
    model, _ = train(tmp_path, max_steps=1, ce_weight=0.0, weight_decay=0.25, decay_all_weights=all_weights)
    for (name, before), after in zip(Small().named_parameters(), model.parameters(), strict=True):
        factor = 0.75 if all_weights or name == "head.weight" else 1.0
        torch.testing.assert_close(after, factor * before)


@pytest.mark.parametrize("options, said", [
    ({"lr_decay_epochs": [0.0]}, "lr_decay_epochs\\[0\\] is 0.0: use a finite number above 0"),
    ({"lr_decay_epochs": [float("nan")]}, "lr_decay_epochs\\[0\\] is nan"),
    ({"lr_decay_rate": 0.0}, "lr_decay_rate is 0.0: use a finite number above 0"),
    ({"lr_decay_epochs": [1.0]}, "lr_scheduler_type is linear: add --lr_scheduler_type constant"),
])  # fmt: skip
def test_bad_values(options, said):
    with pytest.raises(InputError, match=said):
        GDKDConfig(**options)
