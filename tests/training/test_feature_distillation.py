"""Training with losses on hidden features: by equivalence with a plain loop, with other splits, after a resumption."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from tiny_cnns import CLASSES, CNN, SIZE, BigCNN, InOrder, config, distil, make, make_data, vit, weights
from tiny_training import StopAt, rows
from torch import nn
from torch.nn import functional as F

from hf_gdkd import GDKDTrainer, Teacher
from hf_gdkd.errors import InputError
from hf_gdkd.losses import FEATURE_LOSSES, Features
from hf_gdkd.training.checkpoint_trainer import MODEL_FILES
from hf_gdkd.training.teacher import Ensemble

PARTS = {"rkd": ["rkd_distance", "rkd_angle"]}


@pytest.mark.parametrize("loss", sorted(FEATURE_LOSSES.keys() - {"vitkd"}))  # see test_vitkd.py
@pytest.mark.parametrize(
    "student, teacher", [(CNN, BigCNN), (CNN, vit), (vit, BigCNN)], ids=["cnn", "vit>cnn", "cnn>vit"]
)
def test_every_loss_falls(tmp_path, loss, student, teacher):
    trainer = distil(
        tmp_path, loss, student, teacher, num_train_epochs=15, optim="adamw_torch", learning_rate=5e-3, ce_weight=0.0,
    )  # fmt: skip
    epochs = [[row for row in rows(trainer) if epoch < row["epoch"] <= epoch + 1] for epoch in (0, 14)]
    first, last = ({name: sum(row[name] for row in epoch) for name in epoch[0]} for epoch in epochs)
    assert last["kd"] < 0.9 * first["kd"]
    for part in PARTS.get(loss, [loss]):
        assert last[part] < first[part]
    assert first["loss"] == pytest.approx(first["kd"] * trainer.args.kd_weight, rel=1e-4)


@pytest.mark.parametrize("loss, clip", [("fitnet", 0.1), ("fitnet", 0.0), ("crd", 0.1), ("rkd", 0.0)])
def test_training_is_the_plain_loop(tmp_path, loss, clip):
    """Student and projections, SGD with clipping of both together, no gradient left over from the step before."""
    trainer = distil(tmp_path / "a", loss, num_train_epochs=2, max_grad_norm=clip, ce_weight=0.3, kd_weight=2.0)
    start = InOrder(make(CNN), make(BigCNN, 1), config(tmp_path / "b", loss), train_dataset=make_data())
    student, teacher = make(CNN), make(BigCNN, 1)
    by_hand = start.distillation_loss  # the same first projections
    parameters = [*student.parameters(), *by_hand.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    data = make_data()
    norms = []
    for first in (0, 8, 16) * 2:
        batch = data[first : first + 8]
        x, labels = torch.stack([r["pixel_values"] for r in batch]), torch.tensor([r["labels"] for r in batch])
        ours, theirs = (Features(m, m[-1].mean((2, 3))) for m in (student.stages(x), teacher.stages(x)))
        total = 0.3 * F.cross_entropy(student.head(ours.pooled), labels) + 2.0 * by_hand(ours, theirs, labels)
        optimizer.zero_grad()
        total.backward()
        norms.append(float(nn.utils.clip_grad_norm_(parameters, clip or float("inf"))))
        optimizer.step()
        row = rows(trainer)[len(norms) - 1]
        assert row["loss"] == pytest.approx(total.item(), rel=1e-4)
        assert row["grad_norm"] == pytest.approx(norms[-1], rel=1e-4)
    assert min(norms) > clip, "clipping must have a say"
    torch.testing.assert_close(weights(trainer), torch.cat([p.detach().flatten() for p in parameters]))


@pytest.mark.parametrize("loss", ["fitnet", "at", "gdkd+fitnet"])
def test_accumulation_does_not_change_the_steps(tmp_path, loss):
    """Batches of 8, 8 and 4 against micro-batches of 2."""
    start = torch.cat([p.detach().flatten() for p in make(CNN).parameters()])
    whole = distil(tmp_path / "a", loss, learning_rate=1e-3)
    split = distil(
        tmp_path / "b", loss, learning_rate=1e-3, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    assert whole.state.global_step == split.state.global_step == 3
    assert (weights(whole)[: len(start)] - start).norm() > 1e-3 * start.norm()
    torch.testing.assert_close(weights(whole), weights(split), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["fitnet", "crd", "reviewkd", "gdkd+crd+fitnet"])
def test_resumed_is_uninterrupted(tmp_path, loss):
    options = {"num_train_epochs": 2, "optim": "adamw_torch", "learning_rate": 1e-3, "lr_scheduler_type": "cosine"}
    straight = distil(tmp_path / "a", loss, **options)
    distil(tmp_path / "b", loss, callbacks=[StopAt(4)], **options)
    resumed = distil(tmp_path / "b", loss, resume=str(tmp_path / "b" / "checkpoint-4"), **options)
    assert torch.equal(weights(straight), weights(resumed))
    assert rows(straight) == rows(resumed)


@pytest.mark.parametrize("loss", sorted(FEATURE_LOSSES.keys() - {"vitkd"}))  # see test_vitkd.py
def test_what_is_saved_is_the_student(tmp_path, loss):
    trainer = distil(tmp_path, loss, student=vit, save_strategy="epoch")
    trainer.save_model(str(tmp_path / "student"))
    make(vit).save_pretrained(tmp_path / "alone")
    names = [
        set(safe_open(tmp_path / folder / "model.safetensors", "pt").keys())
        for folder in ("alone", "student", "checkpoint-3")
    ]
    assert names[0] == names[1] == names[2]
    assert not list((tmp_path / "student").glob("*projections*"))
    assert trainer.model.state_dict().keys() == make(vit).state_dict().keys()
    learned = list(trainer.projections.parameters())
    assert bool(learned) == (loss in ("fitnet", "crd", "reviewkd", "cwd_features"))
    assert (tmp_path / "checkpoint-3" / "projections.safetensors").exists() == bool(learned)
    pushed = [p for p in (tmp_path / "checkpoint-3").iterdir() if any(p.match(pattern) for pattern in MODEL_FILES)]
    assert {p.name for p in pushed} == {"model.safetensors", "config.json"}
    owned = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in (*trainer.model.parameters(), *learned)}
    assert not [m for m in trainer.model.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize("loss", ["fitnet", "reviewkd"])
def test_one_teacher_pass_a_batch_and_none_in_evaluation(tmp_path, loss):
    teacher, passes = make(BigCNN, 1), []
    trainer = InOrder(
        make(CNN), teacher, config(tmp_path, loss, num_train_epochs=2, eval_strategy="epoch"),
        train_dataset=make_data(), eval_dataset=make_data(6),
    )  # fmt: skip
    for module in trainer.projections.modules():
        module.register_forward_hook(lambda module, *_: passes.append(module))
    before = teacher.calls
    trainer.train()
    assert teacher.calls == before + 6
    assert len(passes) == 6 * len({id(m) for m in passes})
    trainer.evaluate()
    trainer.predict(make_data(4))
    assert teacher.calls == before + 6 and len(passes) == 6 * len({id(m) for m in passes})
    assert not any(p.grad is not None or p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("decay_all", [False, True])
def test_projections_decay_as_the_student_does(tmp_path, decay_all):
    """By Trainer's rule: all but the biases, or all."""
    trainer = distil(tmp_path, "reviewkd", weight_decay=0.1, decay_all_weights=decay_all, learning_rate=1e-3)
    groups = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.projections.named_parameters():
        assert groups[id(parameter)] == (0.1 if decay_all or not name.endswith("bias") else 0.0), name


def test_evaluation_needs_no_training_data(tmp_path):
    trainer = GDKDTrainer(make(CNN), make(BigCNN, 1), config(tmp_path, "fitnet"))
    assert trainer.evaluate(make_data(6))["eval_loss"] > 0


def test_a_teacher_in_bfloat16_and_layers_by_name(tmp_path):
    trainer = distil(
        tmp_path, "fitnet", teacher=vit, teacher_dtype="bfloat16", student_layers=["stage3"],
        teacher_layers=["vit.layers.0"],
    )  # fmt: skip
    assert trainer.distillation_loss.regressors[0].weight.shape[:2] == (8, 12)
    assert {p.dtype for p in trainer.projections.parameters()} == {torch.float32}
    assert rows(trainer)[-1]["fitnet"] > 0


@pytest.mark.parametrize("options, said", [
    ({"student_layers": ["stage9"]}, "the student has no module 'stage9': choose one such as stage"),
    ({"teacher_layers": ["head"]}, "module 'head' of the teacher does not return one map"),
    ({"student_layers": ["stage1", "stage2"], "teacher_layers": ["stage1"]}, "student_layers names 2 modules and "
     "teacher_layers 1"),
    ({"torch_compile": True}, "loss fitnet listens to the student's modules, which torch_compile"),
    ({"teacher": Ensemble([Teacher(CNN()), Teacher(CNN())])}, "loss fitnet is on hidden features, of one model"),
    ({"teacher": nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, CLASSES))}, "no feature maps were found in the "
     "teacher"),
])  # fmt: skip
def test_bad_input_before_training(tmp_path, options, said):
    teacher = options.pop("teacher", None) or make(BigCNN)
    with pytest.raises(InputError) as caught:
        GDKDTrainer(make(CNN), teacher, config(tmp_path, "fitnet", **options), train_dataset=make_data())
    assert said in str(caught.value) and "\n" not in str(caught.value)
