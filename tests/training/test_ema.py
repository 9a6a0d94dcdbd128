"""The moving average equals a plain loop's; it is what is evaluated, saved, resumed and kept as the best."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import InOrder, Normed, NormedTeacher, Plain, Record, config, distil, make, make_data, vit, weights
from transformers import TrainerCallback

from hf_gdkd.errors import InputError
from hf_gdkd.training.checkpoint_trainer import MODEL_FILES
from hf_gdkd.training.ema import RAW_WEIGHTS_FILE
from hf_gdkd.training.trainer import GDKDTrainer

DECAY = 0.5


def test_the_average_is_that_of_a_plain_loop(tmp_path):
    record = Record()
    student = make(Normed)
    average = {name: t.clone() for name, t in student.state_dict().items()}
    options = {"num_train_epochs": 2, "eval_strategy": "epoch", "callbacks": [record]}
    trainer = distil(tmp_path, student, ema_decay=DECAY, **options)
    raw = record.steps
    assert len(raw) == 6
    averages = []
    for n, step in enumerate(raw, start=1):
        kept = min(DECAY, (1 + n) / (10 + n))
        for name, value in step.items():
            average[name] = kept * average[name] + (1 - kept) * value if value.is_floating_point() else value
        averages.append(dict(average))
    torch.testing.assert_close(record.evaluated[0], averages[2])
    torch.testing.assert_close(dict(trainer.model.state_dict()), averages[5])
    plain = distil(tmp_path, make(Normed), **options | {"callbacks": None})
    torch.testing.assert_close(dict(plain.model.state_dict()), raw[-1], rtol=0, atol=0)  # training itself is the same
    assert not torch.allclose(weights(plain), weights(trainer))


@pytest.mark.parametrize("build", [vit, Plain])
def test_the_model_of_a_checkpoint_is_what_was_evaluated(tmp_path, build):
    """And the raw weights stand beside it, from which a resumed run goes on exactly."""
    record = Record()
    options = {"ema_decay": DECAY, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    options |= {"eval_strategy": "steps", "eval_steps": 2, "trainer": GDKDTrainer}
    straight = distil(tmp_path / "a", make(build), callbacks=[record], **options)
    checkpoint = tmp_path / "a/checkpoint-2"
    saved, raw = make(build), load_file(checkpoint / RAW_WEIGHTS_FILE)
    if build is vit:
        saved = type(saved).from_pretrained(checkpoint)
    else:
        saved.load_state_dict(load_file(checkpoint / "model.safetensors"))
    torch.testing.assert_close(dict(saved.state_dict()), record.evaluated[0], rtol=0, atol=0)
    torch.testing.assert_close(raw, record.steps[1], rtol=0, atol=0)
    assert not any(torch.equal(raw[name], value) for name, value in saved.state_dict().items() if value.ndim > 1)
    assert not any((checkpoint / RAW_WEIGHTS_FILE).match(pattern) for pattern in MODEL_FILES), "it would be pushed"

    resumed = distil(tmp_path / "b", make(build, 9), resume=str(checkpoint), **options)
    assert torch.equal(weights(straight), weights(resumed))
    with pytest.raises(InputError, match=r"this run began with ema_decay 0.5, and would go on with null"):
        distil(tmp_path / "c", make(build), resume=str(checkpoint), **options | {"ema_decay": None})
    distil(tmp_path / "d", make(build), **options | {"ema_decay": None})
    with pytest.raises(InputError, match=r"this run began with ema_decay null, and would go on with 0.5"):
        distil(tmp_path / "c", make(build), resume=str(tmp_path / "d/checkpoint-2"), **options)


@pytest.mark.parametrize("build", [vit, Plain])
def test_what_is_saved_at_the_end_is_what_was_evaluated(tmp_path, build):
    trainer = distil(tmp_path, make(build), ema_decay=DECAY, num_train_epochs=2, eval_strategy="epoch")
    last = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row][-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(last, rel=1e-6)
    trainer.save_model()
    assert not (tmp_path / RAW_WEIGHTS_FILE).exists()
    saved = torch.cat([t.flatten() for t in load_file(tmp_path / "model.safetensors").values()])
    assert saved.sum() == pytest.approx(float(weights(trainer).sum()), rel=1e-4)


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("build, best", [(vit, max), (Plain, min)])
def test_the_best_average_is_kept(tmp_path, build, best, weights_only):
    """What counts as best is chosen so that it is the first epoch: the model is then the average of that epoch."""
    options = {"save_only_model": weights_only} | {
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "load_best_model_at_end": True,
    }
    options |= {"metric_for_best_model": "loss", "greater_is_better": best is max, "num_train_epochs": 4}
    trainer = distil(tmp_path, make(build), ema_decay=DECAY, learning_rate=0.05, **options)
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert losses[0] == best(losses) != losses[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[0], rel=1e-6)


def test_training_twice_begins_a_new_average(tmp_path):
    trainer = distil(tmp_path, make(Plain), ema_decay=DECAY)
    again = GDKDTrainer(make(Plain), make(NormedTeacher, 1), config(tmp_path), train_dataset=make_data())
    again.model.load_state_dict(trainer.model.state_dict())
    trainer.train()
    assert (
        not trainer.ema.training and trainer.ema.average is None and not torch.equal(weights(trainer), weights(again))
    )


def test_an_interrupted_training_leaves_no_average_to_the_next(tmp_path):
    class Interrupts(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise KeyboardInterrupt

    args = config(tmp_path, ema_decay=DECAY)
    trainer = InOrder(make(Plain, 1), make(NormedTeacher, 1), args, train_dataset=make_data(), callbacks=[Interrupts()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.pop_callback(Interrupts)
    trainer.model.load_state_dict(make(Plain).state_dict())
    trainer.train()
    assert torch.equal(weights(trainer), weights(distil(tmp_path, make(Plain), ema_decay=DECAY)))


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, float("nan")])
def test_a_decay_out_of_range(tmp_path, decay):
    with pytest.raises(InputError, match=r"ema_decay is .*: .* a number above 0 and below 1"):
        config(tmp_path, ema_decay=decay)
