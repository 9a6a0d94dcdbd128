"""No loss makes the host wait for the device: computed on a GPU that torch pretends to have."""

import traceback

import pytest
import torch
from tiny_training import CLASSES, SIZE, Plain, config, make, make_data
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_gdkd import GDKDTrainer, Teacher
from hf_gdkd.losses.registry import LOSSES

READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal.default", "unique")
BATCH = 4


class Waits(TorchDispatchMode):
    """Notes where a number is read from the device, or copied between it and the host while the host waits."""

    def __init__(self):
        super().__init__()
        self.places = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        try:
            out = func(*args, **kwargs)
        except Exception as error:  # the value of a tensor that has none
            raise AssertionError(f"{func} in {place()}") from error
        devices = {t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        waits = kwargs.get("non_blocking", args[2] if func is torch.ops.aten.copy_.default and len(args) > 2 else False)
        copied = "copy" in func.__name__ and len(devices) > 1 and not waits
        if copied or any(name in func.__name__ for name in READS):
            self.places.append(f"{func} in {place()}")
        return out


def place():
    ours = [frame for frame in traceback.extract_stack() if "/hf_gdkd/" in frame.filename]
    return f"{ours[-1].filename}:{ours[-1].lineno}" if ours else "no file of hf_gdkd"


class Maps(nn.Module):
    """A segmenter at half the resolution."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, CLASSES, 2, 2)

    def forward(self, x):
        return self.head(x)


def test_the_pretended_gpu_tells(tmp_path):
    torch._C._ensureCUDADeviceGuardSet()
    with FakeTensorMode(), Waits() as waits, torch.device("cuda"):
        torch.zeros(3).add(1)
        assert waits.places == []
        torch.as_tensor(1.0, device="cuda")
        torch.zeros(3, device="cpu").to("cuda")
        assert len(waits.places) == 2
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            torch.zeros(()).item()


CASES = {name: {"loss": name} for name in sorted({*LOSSES} - {"cwd"})} | {
    "class_k": {"loss": "gdkd", "class_k": [2] * CLASSES},
    "class_weights": {"loss": "kd", "class_weights": [1.0] * CLASSES},
    "automatic weights": {"loss": "gdkd+kd", "kd_weight": "auto"},
    "recorded gradients": {"loss": "gdkd", "record_gradients": True},
    **{f"maps, {name}": {"loss": name} for name in ("kd", "gdkd", "gdkd+cwd")},
}


@pytest.mark.parametrize("case", CASES)
def test_the_loss_of_a_micro_batch_waits_for_nothing(tmp_path, monkeypatch, case):
    build = Maps if case.startswith("maps") else Plain
    trainer = GDKDTrainer(make(build), make(build, 1), config(tmp_path, **CASES[case]), train_dataset=make_data())
    trainer.finite.forget()
    monkeypatch.setattr(type(trainer.args), "device", torch.device("cuda"))
    loss = trainer.args.build_loss()
    monkeypatch.setattr(type(trainer.args), "build_loss", lambda args: loss)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    # Backward passes need a GPU.
    monkeypatch.setattr(torch.autograd, "grad", lambda outputs, inputs, **kwargs: (torch.zeros_like(inputs),))
    torch._C._ensureCUDADeviceGuardSet()
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            student, labels = make(build), torch.zeros(BATCH, *((SIZE, SIZE) if build is Maps else ())).long()
            batch = {"pixel_values": torch.randn(BATCH, 3, SIZE, SIZE), "labels": labels, "sample_id": torch.arange(4)}
            trainer.teacher = Teacher(make(build, 1))
        trainer._made_for = None
        trainer._follow()
        trainer.is_in_train = trainer._tried = trainer.teacher.checked = True
        if trainer.gradients is not None:
            trainer.gradients._due = 0, 0.0
        with Waits() as waits:
            value = trainer.compute_loss(student, batch, num_items_in_batch=BATCH)
    assert value.device.type == "cuda" and waits.places == []
