"""What GDKDTrainer takes from Trainer: every argument works, or is refused in one sentence before a step is taken."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from tiny_training import (
    CLASSES,
    SIZE,
    InOrder,
    Normed,
    NormedTeacher,
    Plain,
    config,
    distil,
    make,
    make_data,
    vit,
    weights,
)
from tiny_training import rows as logged
from torch import nn
from transformers import (
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    ViTModel,
)
from transformers.modeling_outputs import ImageClassifierOutput

from hf_gdkd import GDKDTrainer, Teacher
from hf_gdkd.data.datasets import collate
from hf_gdkd.errors import InputError
from hf_gdkd.training import overrides
from hf_gdkd.training.teacher import Ensemble, logits_of

# Precision


class Dtypes(NormedTeacher):
    """Keeps the dtype in which its linear layer ran."""

    def forward(self, pixel_values):
        logits = super().forward(pixel_values)
        self.seen = {*getattr(self, "seen", ()), logits.dtype}
        return logits


@pytest.mark.parametrize("loss", ["gdkd", "fitnet"])
@pytest.mark.parametrize("teacher_dtype, ran", [(None, torch.bfloat16), ("float32", torch.float32)])
def test_the_teacher_runs_in_the_run_s_precision(tmp_path, loss, teacher_dtype, ran):
    class Conv(Dtypes):
        def __init__(self):
            super().__init__()
            self.norm = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))

    teacher, student = make(Conv, 1), make(lambda: Conv() if loss == "fitnet" else Plain())
    trainer = GDKDTrainer(
        student, teacher, config(tmp_path, loss, bf16=True, teacher_dtype=teacher_dtype), train_dataset=make_data()
    )
    teacher.seen = set()
    trainer.train()
    assert teacher.seen == {ran}
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    assert all(math.isfinite(row["kd"]) for row in logged(trainer))


def test_teacher_dtype_holds_for_teachers_that_set_none(tmp_path):
    free, fixed = Teacher(make(NormedTeacher, 1)), Teacher(make(NormedTeacher, 2), dtype="float16")
    GDKDTrainer(make(Plain), Ensemble([free, fixed]), config(tmp_path, teacher_dtype="bfloat16"))
    assert next(free.model.parameters()).dtype == torch.bfloat16
    assert next(fixed.model.parameters()).dtype == torch.float16


# Arguments


@pytest.mark.parametrize("options, said", [
    ({"compute_loss_func": lambda *a, **k: 0}, "compute_loss_func would take the place of the distillation loss"),
    ({"label_names": ["target"]}, "label_names is ['target']: call the column labels"),
])  # fmt: skip
def test_refused_in_one_sentence(tmp_path, options, said):
    kwargs = {key: options.pop(key) for key in ("compute_loss_func",) if key in options}
    with pytest.raises(InputError) as caught:
        GDKDTrainer(Plain(), None, config(tmp_path, "ce", **options), train_dataset=make_data(), **kwargs)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_plain_training_arguments(tmp_path):
    with pytest.raises(InputError, match="args is a TrainingArguments, which names no distillation loss: pass a GDKDC"):
        GDKDTrainer(Plain(), Plain(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))


@pytest.mark.parametrize("wrap", [lambda m: m, Teacher, lambda m: Ensemble([Teacher(make(Plain)), Teacher(m)])])
def test_one_module_as_teacher_and_student(tmp_path, wrap):
    model = make(Plain)
    with pytest.raises(InputError, match=r"the student and the teacher share weights, .*: pass a copy"):
        GDKDTrainer(model, wrap(model), config(tmp_path), train_dataset=make_data())


def test_a_student_is_not_frozen_on_the_way_to_that_error(tmp_path):
    with pytest.raises(InputError):
        GDKDTrainer(model := make(Plain), model, config(tmp_path), train_dataset=make_data())
    assert all(p.requires_grad for p in model.parameters())


def test_remove_unused_columns_leaves_the_teacher_s_view(tmp_path):
    data, seen = make_data(), []

    class Sees(NormedTeacher):
        def forward(self, pixel_values):
            seen.append(pixel_values)
            return super().forward(pixel_values)

    columns = {key: torch.stack([row[key] for row in data]).tolist() for key in ("pixel_values", "labels")}
    columns |= {"teacher_pixel_values": [[[[1.0] * SIZE] * SIZE] * 3] * len(data), "unused": ["text"] * len(data)}
    table = Dataset.from_dict(columns).with_format("torch")
    trainer = distil(tmp_path, teacher=make(Sees, 1), data=table, remove_unused_columns=True)
    assert len(logged(trainer)) == 3 and len(seen) == 3 and all((pixels == 1).all() for pixels in seen)


class EpochData(torch.utils.data.Dataset):
    """Notes the epochs that it is told."""

    def __init__(self, column="pixel_values", samples=31):
        self.epochs = []
        self.samples = [{column: row["pixel_values"], "labels": row["labels"]} for row in make_data(samples)]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        return self.samples[i]

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


@pytest.mark.parametrize("loss", ["gdkd", "fitnet"])
def test_a_train_dataset_set_later(tmp_path, loss):
    build = Conv if loss == "fitnet" else Plain
    args = config(tmp_path, loss, num_train_epochs=2, learning_rate=1e-3)
    trainer = InOrder(make(build), make(build, 1), args)
    trainer.train_dataset = EpochData()
    trainer.train()
    assert len(logged(trainer)) == 6 and logged(trainer)[0]["kd"] > 0
    assert set(trainer.train_dataset.epochs) == {0, 1}
    trainer.train_dataset.epochs.clear()  # on one process Accelerate tells them too, on several it does not
    trainer._epochs.on_epoch_begin(args, TrainerState(epoch=5.0), TrainerControl())
    assert trainer.train_dataset.epochs == [5]


class Conv(Plain):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return super().forward(self.stem(x))


@pytest.mark.parametrize("loss, build", [("gdkd", Plain), ("fitnet", Conv)])
def test_the_loss_alone_before_and_after_training(tmp_path, loss, build):
    trainer = InOrder(
        make(build), make(build, 1), config(tmp_path, loss, learning_rate=1e-3), train_dataset=make_data()
    )
    batch = collate(make_data()[:12])
    before = trainer.compute_loss(trainer.model.train(), batch)
    trainer.train()
    assert before.item() == pytest.approx(logged(trainer)[0]["loss"], rel=1e-5)
    assert trainer.compute_loss(trainer.model, batch).item() < before.item()


@pytest.mark.parametrize("data, said", [
    (EpochData("image"), "the batch has 'image', 'labels'; expected the images under 'pixel_values'"),
    ([torch.zeros(3, SIZE, SIZE)] * 12, "the batch is no dictionary; expected the images under 'pixel_values'"),
])  # fmt: skip
def test_a_batch_without_pixels(tmp_path, data, said):
    collator = torch.stack if isinstance(data, list) else None
    trainer = InOrder(make(Plain), None, config(tmp_path, "ce"), train_dataset=data, data_collator=collator)
    for run in (trainer.train, lambda: trainer.evaluate(data)):
        with pytest.raises(InputError) as caught:
            run()
        assert said in str(caught.value)


# Batches of one image


class Pooled(nn.Module):
    """BatchNorm of pooled features: of one image it has no statistics."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, CLASSES)

    def forward(self, x):
        return self.head(self.norm(x.mean((2, 3))))


@pytest.mark.parametrize("images, batch, said", [
    (13, 12, "the last batch of an epoch has 1 of the 13 training images, which BatchNorm cannot"),
    (4, 1, "every batch has 1 of the 4 training images, which BatchNorm cannot normalise"),
])  # fmt: skip
def test_a_batch_of_one_image_under_batchnorm(tmp_path, images, batch, said):
    with pytest.raises(InputError) as caught:
        distil(tmp_path, make(Pooled), data=make_data(images), loss="ce", per_device_train_batch_size=batch)
    assert said in str(caught.value) and not (tmp_path / "checkpoint-1").exists()


@pytest.mark.parametrize("build, images, options", [
    (Normed, 13, {}), (Pooled, 14, {}), (Pooled, 13, {"dataloader_drop_last": True}), (Plain, 13, {}),
])  # fmt: skip
def test_batches_that_batchnorm_takes(tmp_path, build, images, options):
    trainer = distil(tmp_path, make(build), data=make_data(images), loss="ce", **options)
    assert trainer.state.global_step == (1 if options else 2)


# What a model returns


def test_logits_in_whatever_a_model_returns():
    logits = torch.randn(2, 3)
    for outputs in (logits, (logits, 1), [logits], {"logits": logits, "x": 1}, ImageClassifierOutput(logits=logits)):
        assert logits_of(outputs) is logits
    with pytest.raises(InputError, match=r"returned a dict with 'out'; expected logits \(N, C\)"):
        logits_of({"out": logits})
    with pytest.raises(InputError, match="returned a BaseModelOutputWithPooling with 'last_hidden_state'"):
        logits_of(ViTModel(vit().config)(torch.zeros(1, 3, SIZE, SIZE)))
    with pytest.raises(InputError, match="returned a NoneType; expected"):
        logits_of(None)


class Wrapped(Plain):
    """Holds its backbone's config, whose num_labels is not its own."""

    def __init__(self):
        super().__init__()
        self.config = vit(2).config


def test_a_config_of_the_backbone_is_not_the_module_s(tmp_path):
    trainer = distil(tmp_path, make(Wrapped), teacher=make(Wrapped, 1), k=6)
    assert len(logged(trainer)) == 3


def test_a_teacher_that_returns_a_dictionary(tmp_path):
    class ByName(NormedTeacher):
        def forward(self, pixel_values):
            return {"logits": super().forward(pixel_values)}

    ends = [weights(distil(tmp_path, teacher=make(build, 1))) for build in (ByName, NormedTeacher)]
    assert torch.equal(*ends)


# Private methods of Trainer


def test_every_overridden_private_method_is_in_the_list():
    ours = [cls for cls in GDKDTrainer.__mro__ if cls.__module__.startswith("hf_gdkd")]
    assert len(ours) > 3
    private = {name for cls in ours for name in vars(cls) if name.startswith("_") and not name.startswith("__")}
    assert sorted(name for name in private if hasattr(Trainer, name)) == list(overrides.OVERRIDDEN)


def test_a_release_without_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(overrides, "OVERRIDDEN", (*overrides.OVERRIDDEN, "_gone"))
    with pytest.raises(InputError, match=r"transformers 5.* has no Trainer._gone, .* install a release"):
        GDKDTrainer(make(Plain), None, config(tmp_path, "ce"))
