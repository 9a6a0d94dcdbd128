"""What presets need of timm: its optimizers, and the cross-entropy of each class by itself."""

import pytest
import timm.loss
import timm.optim
import torch
from refusals import refusal
from tiny_cnns import CLASSES, config, distil, make, make_data, weights

from hf_gdkd import GDKDConfig
from hf_gdkd.training.label_maps import summed_ce

LAMB = {"timm_optimizer": "lamb", "optim_args": "max_grad_norm=0.5, trust_clip=true", "weight_decay": 0.02}


def test_lamb_is_timms(tmp_path):
    """Three steps by hand: weight decay on the weights of layers alone, as Trainer has it."""
    trainer = distil(tmp_path, "ce", teacher=lambda: None, **LAMB)
    model, data = make(type(trainer.model)), make_data()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}]
    lamb = timm.optim.Lamb(groups, lr=0.1, max_grad_norm=0.5, trust_clip=True)
    for start in (0, 8, 16):
        batch = data[start : start + 8]
        logits = model(torch.stack([row["pixel_values"] for row in batch]))
        torch.nn.functional.cross_entropy(logits, torch.tensor([row["labels"] for row in batch])).backward()
        lamb.step()
        lamb.zero_grad()
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(weights(trainer), expected, rtol=1e-4, atol=1e-6)


def test_a_run_with_lamb_resumes_exactly(tmp_path):
    options = LAMB | {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2}
    whole = distil(tmp_path / "whole", "kd", **options)
    again = distil(tmp_path / "again", "kd", resume=str(tmp_path / "whole/checkpoint-2"), **options)
    assert torch.equal(weights(whole), weights(again))
    checkpoint = str(tmp_path / "whole/checkpoint-2")
    other = options | {"timm_optimizer": "lambc"}
    refusal(lambda: distil(tmp_path / "other", "kd", resume=checkpoint, **other), 'began with timm_optimizer "lamb"')


def test_an_optimizer_that_timm_does_not_have():
    refusal(lambda: GDKDConfig(timm_optimizer="lambo", use_cpu=True), "timm_optimizer is 'lambo'", "lamb")
    refusal(lambda: GDKDConfig(timm_optimizer="adahessian", use_cpu=True), "second derivatives")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_binary_cross_entropy_is_timms(smoothing):
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 5, generator=g), torch.tensor([0, 1, 2, 3, 4, 0])
    expected = timm.loss.BinaryCrossEntropy(smoothing=smoothing)(logits, labels)
    found = summed_ce(logits, labels, binary=True, label_smoothing=smoothing) / 6
    torch.testing.assert_close(found, expected)
    soft = torch.nn.functional.one_hot(labels, 5) * 0.7 + torch.nn.functional.one_hot(labels.flip(0), 5) * 0.3
    expected = timm.loss.BinaryCrossEntropy()(logits, soft * (1 - smoothing) + smoothing / 5)  # timm's mixup smooths
    torch.testing.assert_close(summed_ce(logits, soft, binary=True, label_smoothing=smoothing) / 6, expected)


def test_the_trainer_uses_it(tmp_path):
    """One step at a learning rate of 0 logs it; evaluation keeps the softmax's cross-entropy."""
    options = {"binary_cross_entropy": True, "learning_rate": 0.0, "max_steps": 1, "per_device_train_batch_size": 20}
    trainer = distil(tmp_path, "ce", teacher=lambda: None, **options)
    data = make_data()
    logits = trainer.model(torch.stack([row["pixel_values"] for row in data])).detach()
    labels = torch.tensor([row["labels"] for row in data])
    logged = next(row["ce"] for row in trainer.state.log_history if "ce" in row)
    assert logged == pytest.approx(float(timm.loss.BinaryCrossEntropy(smoothing=0.0)(logits, labels)), rel=1e-4)
    loss = trainer.evaluate(data)["eval_loss"]
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-4)


def test_what_has_no_place_beside_it():
    weights = [1.0] * CLASSES
    refusal(lambda: config("x", "ce", binary_cross_entropy=True, class_weights=weights), "no class_weights")
    maps, labels = torch.randn(2, 5, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    refusal(lambda: summed_ce(maps, labels, binary=True), "not of pixels")
