"""record_gradients: the closed form against autograd, and what a run leaves, also one that was resumed."""

import json

import pytest
import torch
from tiny_training import InOrder, StopAt, config, distil, make_data, weights
from torch.nn.functional import kl_div

from hf_gdkd.errors import InputError, TrainingError
from hf_gdkd.losses import build_loss
from hf_gdkd.losses.gradients import TERMS, non_top_gradients
from hf_gdkd.training import gradient_record

OPTIONS = [
    ("gdkd", {"k": 3}),
    ("gdkd", {"k": 2, "temperature": 4.0, "w0": 1.0, "w2": 8.0}),
    ("gdkd", {"k": 4, "coupled": True}),
    ("gdkd", {"threshold": 2.0}),
    ("gdkd", {"class_k": [1, 2, 3, 4, 5, 6, 7, 8, 9, 1]}),
    ("gdkd", {"k": 3, "strategy": "worst"}),
    ("gdkd3", {"k": 4, "temperature": 2.0}),
]


@pytest.mark.parametrize("name, options", OPTIONS)
def test_the_closed_form_is_what_autograd_gives(name, options):
    g = torch.Generator().manual_seed(0)
    teacher, student = 2 * torch.randn(2, 30, 10, generator=g)
    labels = torch.randint(10, (30,), generator=g)
    loss, student = build_loss(name, **options, reduction="none"), student.requires_grad_()
    found = non_top_gradients(loss, student, teacher, labels)
    parts = loss.parts(student, teacher, labels)
    sizes = options.get("class_k") or [options.get("k")] * 10
    for i in range(30):
        order = teacher[i].argsort(descending=options.get("strategy") != "worst").tolist()
        if "threshold" in options:
            order, k = [], int((loss.top_group(teacher, labels)[i]).sum())
            order = teacher[i].argsort(descending=True).tolist()
        else:
            k = sizes[int(labels[i])]
        rest = order[k:]
        for part, term in (("high", "high"), ("low_other", "low_other")):
            (gradient,) = torch.autograd.grad(loss.weights[part] * parts[part][i], student, retain_graph=True)
            assert found[term][i].item() == pytest.approx(gradient[i, rest].abs().mean().item(), abs=1e-6)
        t = loss.temperature
        inside = [(logits[i] / t)[rest].log_softmax(0) for logits in (student, teacher)]
        mass = (teacher[i] / t).softmax(0)[rest].sum()
        coupled = t**2 * mass * kl_div(*inside, reduction="sum", log_target=True)
        (gradient,) = torch.autograd.grad(coupled, student, retain_graph=True)
        assert found["kd"][i].item() == pytest.approx(gradient[i, rest].abs().mean().item(), abs=1e-6)


def test_a_run_leaves_its_gradients_and_learns_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(gradient_record, "EVERY", 2)
    options = {"k": 2, "num_train_epochs": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 6}
    plain = distil(tmp_path / "plain", **options)
    trained = distil(tmp_path / "recorded", record_gradients=True, **options)
    torch.testing.assert_close(weights(trained), weights(plain), rtol=0, atol=0)
    found = json.loads((tmp_path / "recorded/gradients.json").read_text())
    assert [row["step"] for row in found["rows"]] == [0, 2, 4] and found["terms"].keys() == set(TERMS)
    assert all(row[term] == sorted(row[term]) and row[term][0] > 0 for row in found["rows"] for term in TERMS)
    assert (tmp_path / "recorded/gradients.png").is_file() and not (tmp_path / "plain/gradients.json").exists()


def test_a_resumed_run_goes_on_with_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(gradient_record, "EVERY", 1)
    options = {"k": 2, "num_train_epochs": 2, "record_gradients": True, "save_strategy": "steps", "save_steps": 2}
    whole = distil(tmp_path / "whole", **options)
    distil(tmp_path / "cut", callbacks=[StopAt(4)], **options)
    path = tmp_path / "cut/gradients.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"rows": [*found["rows"], found["rows"][-1] | {"step": 4}]}))  # was killed later
    distil(tmp_path / "cut", resume=str(tmp_path / "cut/checkpoint-4"), **options)
    rows = [json.loads((tmp_path / name / "gradients.json").read_text())["rows"] for name in ("whole", "cut")]
    assert rows[0] == rows[1] and len(rows[0]) == whole.state.global_step == 6


def test_a_run_that_was_stopped_leaves_its_record_up_to_the_step(tmp_path, monkeypatch):
    """Of a loss that is not finite, found one step later; the run that goes on from there repeats that step."""
    monkeypatch.setattr(gradient_record, "EVERY", 1)
    options = {"k": 2, "record_gradients": True, "optim": "adamw_torch_fused", "logging_strategy": "no"}
    data = make_data()
    good, data[20]["pixel_values"] = data[20]["pixel_values"], torch.full_like(data[20]["pixel_values"], torch.inf)
    with pytest.raises(TrainingError, match="at step 2 the loss is not finite"):
        distil(tmp_path, data=data, trainer=InOrder, **options)
    assert [row["step"] for row in json.loads((tmp_path / "gradients.json").read_text())["rows"]] == [0]
    data[20]["pixel_values"] = good
    distil(tmp_path, data=data, trainer=InOrder, resume=True, **options)
    assert [row["step"] for row in json.loads((tmp_path / "gradients.json").read_text())["rows"]] == [0, 1, 2]


@pytest.mark.parametrize("loss, options", [
    ("kd", {}), ("ce", {}), ("gdkd", {"kl": "reverse"}), ("gdkd", {"standardize": "global"}),
])  # fmt: skip
def test_other_losses_are_refused(tmp_path, loss, options):
    with pytest.raises(InputError, match="gradients are recorded of gdkd and gdkd3"):
        config(tmp_path, loss=loss, record_gradients=True, **options)
