"""The teacher runs once for all micro-batches of a step, with the answers that it gives them one by one."""

import pytest
import torch
from tiny_training import CLASSES, SIZE, InOrder, NormedTeacher, Plain, config, make, make_data, vit, weights
from torch import nn

from hf_gdkd import Teacher
from hf_gdkd.training.teacher import Ensemble

SPLIT = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4, "num_train_epochs": 2}
PASSES = 2 * (4 + 4 + 3)  # of 12 + 12 + 7 images in threes; the first step is asked about one by one


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.calls = nn.Conv2d(3, CLASSES, 1), 0

    def forward(self, pixel_values):
        self.calls += 1
        return self.head(pixel_values)


class Pooled(Segmenter):
    """A classifier of images of any size."""

    def forward(self, pixel_values):
        return super().forward(pixel_values).mean((2, 3))


class Small(NormedTeacher):
    """A teacher for which the memory suffices for four images at most."""

    def forward(self, pixel_values):
        if len(pixel_values) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(pixel_values)


class SmallMPS(NormedTeacher):
    """The same as on an Apple GPU."""

    def forward(self, pixel_values):
        if len(pixel_values) > 4:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB).")
        return super().forward(pixel_values)


def trained(folder, teacher, student, at_once, data, **options):
    """The student's weights, and the teacher's passes."""
    trainer = InOrder(student, teacher, config(folder, **SPLIT | options), train_dataset=data)
    assert not trainer._asks_at_once  # on a CPU
    trainer._asks_at_once = at_once
    trainer.train()
    first = getattr(trainer.teacher, "teachers", [trainer.teacher])[0]
    return weights(trainer), first.model.calls


def two_views():
    return [row | {"teacher_pixel_values": row["pixel_values"].flip(-1)} for row in make_data()]


def two_sizes():
    """Those of a micro-batch are alike."""
    return [row | {"pixel_values": row["pixel_values"][:, i // 3 % 2 :]} for i, row in enumerate(make_data())]


def maps():
    g = torch.Generator().manual_seed(0)
    return [row | {"labels": torch.randint(CLASSES, (SIZE, SIZE), generator=g)} for row in make_data()]


def several():
    keys = ("its own, which no batch has", "teacher_pixel_values")
    return Ensemble([Teacher(make(NormedTeacher, seed), pixels=key) for seed, key in enumerate(keys)])


def counted_vit():
    model = make(vit, 1)
    model.calls = 0
    model.register_forward_pre_hook(lambda module, _: setattr(module, "calls", module.calls + 1))
    return model


CASES = {  # the teacher, the student, the data, options, and the passes; None: as many as one by one
    "plain": (lambda: make(NormedTeacher, 1), Plain, make_data, {}, 4 + 1 + 1 + 3),
    "its own view": (lambda: make(NormedTeacher, 1), Plain, two_views, {}, 4 + 1 + 1 + 3),
    "several teachers": (several, Plain, two_views, {}, 4 + 1 + 1 + 3),
    "sizes that differ": (lambda: make(Pooled, 1), Pooled, two_sizes, {}, PASSES),
    "no distillation at first": (lambda: make(NormedTeacher, 1), Plain, make_data, {"kd_skip_epochs": 1}, 1 + 3),
    "label maps": (lambda: make(Segmenter, 1), Segmenter, maps, {"loss": "kd"}, PASSES),
    "features": (counted_vit, vit, make_data, {"loss": "gdkd+fitnet", "learning_rate": 1e-3}, None),
    "no memory": (lambda: make(Small, 1), Plain, make_data, {}, PASSES),
    "no memory (MPS)": (lambda: make(SmallMPS, 1), Plain, make_data, {}, PASSES),
}


@pytest.mark.parametrize("case", CASES)
def test_the_student_is_the_same(tmp_path, caplog, case):
    teacher, student, data, options, passes = CASES[case]
    split, many = trained(tmp_path / "a", teacher(), make(student), False, data(), **options)
    joined, few = trained(tmp_path / "b", teacher(), make(student), True, data(), **options)
    torch.testing.assert_close(joined, split, rtol=1e-5, atol=1e-6)
    assert few == (many if passes is None else passes)
    said = [record for record in caplog.records if "memory does not suffice" in record.message]
    assert len(said) == case.startswith("no memory")
