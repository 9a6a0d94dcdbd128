"""Training with several losses: by equivalence with a plain loop, through settings files and flags, on label maps."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from tiny_cnns import CNN, BigCNN, InOrder, config, distil, make, make_data, weights
from tiny_training import rows
from torch import nn
from torch.nn import functional as F

from hf_gdkd import GDKDConfig, GDKDTrainer
from hf_gdkd.commands.arguments.parsing import parse
from hf_gdkd.errors import InputError
from hf_gdkd.losses import DistillationLoss, Features, build_loss

LOSS = [{"name": "gdkd", "k": 2, "weight": 0.5}, {"name": "fitnet", "weight": 3.0}, {"name": "rkd"}]
NAMES = "--teacher t --student s --use_cpu --report_to none".split()


def test_training_is_the_plain_loop_and_each_model_runs_once(tmp_path):
    trainer = distil(tmp_path / "a", LOSS, num_train_epochs=2, kd_weight=2.0)
    start = InOrder(make(CNN), make(BigCNN, 1), config(tmp_path / "b", LOSS), train_dataset=make_data())
    student, teacher, data = make(CNN), make(BigCNN, 1), make_data()
    by_hand = build_loss([*LOSS[:2], "rkd"])
    by_hand._members = nn.ModuleDict(start.distillation_loss.members)  # the same first projections
    parameters = [*student.parameters(), *by_hand.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for step, first in enumerate((0, 8, 16) * 2):
        batch = data[first : first + 8]
        x, labels = torch.stack([r["pixel_values"] for r in batch]), torch.tensor([r["labels"] for r in batch])
        ours, theirs = (Features(m, m[-1].mean((2, 3))) for m in (student.stages(x), teacher.stages(x)))
        logits, targets = student.head(ours.pooled), teacher.head(theirs.pooled)
        kd = by_hand(logits, targets, labels, ours, theirs)
        total = F.cross_entropy(logits, labels) + 2.0 * kd
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        row = rows(trainer)[step]
        assert row["loss"] == pytest.approx(total.item(), rel=1e-4)
        assert row["kd"] == pytest.approx(kd.item(), rel=1e-4)
    assert {"gdkd/high", "gdkd/low_top", "fitnet/fitnet", "rkd/rkd_angle"} <= row.keys()
    torch.testing.assert_close(weights(trainer), torch.cat([p.detach().flatten() for p in parameters]))
    counted = GDKDTrainer(make(CNN), make(BigCNN, 1), config(tmp_path / "c", LOSS), train_dataset=make_data())
    before = counted.teacher.model.calls, counted.model.calls
    counted.train()
    assert (counted.teacher.model.calls - before[0], counted.model.calls - before[1]) == (3, 3)


def settings(tmp_path, **options):
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(options))
    return str(file)


def test_a_list_in_a_settings_file_and_flags_that_override_it(tmp_path):
    file = settings(tmp_path, loss=LOSS, temperature=2.0)
    args = parse(["--config", file, *NAMES])[1]
    assert args.loss == "gdkd+fitnet+rkd"
    assert args.build_loss().member_weights == {"gdkd": 0.5, "fitnet": 3.0, "rkd": 1.0}
    loss = parse(["--config", file, *NAMES, "--loss_options", "gdkd.k=3", "gdkd.temperature=4"])[1].build_loss()
    assert loss.member_weights["gdkd"] == 0.5 and (loss.members["gdkd"].k, loss.members["gdkd"].temperature) == (3, 4)
    assert parse(["--config", file, *NAMES, "--loss", "kd"])[1].loss_options is None
    recipe = settings(tmp_path, **{name: getattr(args, name) for name in ("loss", "loss_options")})
    assert parse(["--config", recipe, *NAMES])[1].build_loss().member_weights == args.build_loss().member_weights


def test_options_in_python_and_a_bad_word():
    args = GDKDConfig(loss="gdkd+mlkd", k=3, loss_options={"mlkd.temperatures": [2, 4], "mlkd.mask_samples": True})
    assert json.loads(json.dumps(args.to_dict()["loss_options"])) == args.loss_options
    again = GDKDConfig(loss="gdkd+mlkd", loss_options=args.loss_options).build_loss().members["mlkd"]
    assert again.temperatures == args.build_loss().members["mlkd"].temperatures and again.mask_samples is True
    with pytest.raises(InputError, match=r"loss_options has 'gdkd.k': write options as gdkd.temperature=4"):
        GDKDConfig(loss="gdkd+kd", loss_options=["gdkd.k"])


def test_label_maps_with_losses_on_logits_and_on_features(tmp_path):
    """Every loss is the mean over what it compares: pixels with a label, or images."""

    class Maps(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, width, 3, 2, 1))
            self.head = nn.Conv2d(width, 5, 1)

        def forward(self, pixel_values):
            return self.head(self.body(pixel_values))

    g = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (8, 8, 8), generator=g)
    labels[::2, 3:] = 255
    data = [{"pixel_values": torch.randn(3, 8, 8, generator=g), "labels": each} for each in labels]

    def first_step(loss, **options):
        args = config(tmp_path, loss, max_steps=1, per_device_train_batch_size=8, **options)
        trainer = InOrder(make(lambda: Maps(4)), make(lambda: Maps(6), 1), args, train_dataset=data)
        trainer.train()
        return rows(trainer)[0]

    both, kd, fitnet = (first_step(loss) for loss in ("kd+at", "kd", "at"))
    assert both["at/at"] == pytest.approx(fitnet["at"], rel=1e-5)
    assert both["kd"] == pytest.approx(kd["kd"] + 1000 * fitnet["at"], rel=1e-5)
    assert both["loss"] == pytest.approx(both["ce"] + both["kd"], rel=1e-5)
    split = first_step("kd+at", gradient_accumulation_steps=4)
    assert split["kd"] == pytest.approx(both["kd"], rel=1e-5)


def test_a_loss_of_the_user_in_a_combination(tmp_path):
    from hf_gdkd.losses import LOSSES, register_loss

    class Gap(DistillationLoss):
        def __init__(self, *, power: float = 2.0, dim: int = -1, reduction: str = "mean") -> None:
            super().__init__(dim=dim, reduction=reduction)
            self.power, self.weights = power, {"gap": 1.0}

        def compute(self, student, teacher, labels):
            return {"gap": (student - teacher).abs().pow(self.power).mean(-1)}

    register_loss("gap", Gap)
    try:
        trainer = distil(tmp_path, "gap+kd", loss_options={"power": 3.0, "gap.weight": 2.0})
        assert trainer.distillation_loss.members["gap"].power == 3.0 and "gap/gap" in rows(trainer)[0]
    finally:
        del LOSSES["gap"]
    with pytest.raises(InputError, match=r"a loss cannot be called 'a\+b'"):
        register_loss("a+b", Gap)
