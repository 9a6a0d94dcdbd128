"""What only a GPU can show: `make gpu` runs these, without the Internet. Where a CPU can, it runs the same bodies."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import Normed, Plain, StopAt, config, convnext, distil, make, make_data, rows, vit, weights
from torch import nn

from hf_gdkd import GDKDTrainer, Teacher
from hf_gdkd.errors import InputError, TrainingError
from hf_gdkd.losses import build_loss
from hf_gdkd.losses.partition import top_k
from hf_gdkd.training.distributed import place_teacher

ROOT = Path(__file__).parents[2]
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch finds none")
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])
on_both = pytest.mark.parametrize("device", ["cpu", GPU])
on_gpu = pytest.mark.parametrize("device", [GPU])
LOSSES = ("kd", "dkd", "gdkd", "gdkd3", "dist", "mlkd")
DIGITS = "--dataset digits --student_init random --max_steps 2 --per_device_train_batch_size 32".split()
DIGITS += "--save_strategy no --eval_strategy no --disable_tqdm true --allow_weak_teacher".split()


def on(device: str) -> dict[str, bool]:
    return {"use_cpu": device == "cpu"}


@on_both
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype, value_error, gradient_error", [
    (torch.float32, 1e-4, 1e-4),
    (torch.bfloat16, 1e-4, 1e-2),  # it computes in float32, and the gradient is rounded to bfloat16
])  # fmt: skip
def test_a_loss_is_that_of_the_cpu_in_float64(name, dtype, value_error, gradient_error, device):
    g = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 64, 1000, generator=g)
    largest = logits.topk(8, dim=-1).indices  # apart in bfloat16 too: of equal logits a GPU may pick another
    logits = logits.scatter(-1, largest, torch.linspace(16, 12.5, 8).expand(2, 64, 8)).to(dtype)
    labels = torch.randint(1000, (64,), generator=g)
    found = []
    for place, precision in ((device, dtype), ("cpu", torch.float64)):
        student, teacher = logits.to(place, precision)
        student = student.clone().requires_grad_()
        value = build_loss(name)(student, teacher, labels.to(place))
        value.backward()
        found.append((value.item(), student.grad.cpu().double()))
    (value, gradient), (expected, expected_gradient) = found
    assert value == pytest.approx(expected, rel=value_error)
    assert (gradient - expected_gradient).norm() <= gradient_error * expected_gradient.norm()


@on_both
@pytest.mark.parametrize("classes, k", [(10, 3), (1000, 5), (21841, 8)])
def test_top_k_takes_the_largest_once_each(classes, k, device):
    """By its own branch on a GPU; also among equal logits, and in rows that hold fewer finite logits than k."""
    logits = torch.randn(12, classes, generator=torch.Generator().manual_seed(0)).mul(3).round()
    logits[3:6, 2:] = -torch.inf
    for strategy, sign in (("best", 1), ("worst", -1)):
        (index,) = top_k(logits.to(device), k, strategy=strategy)
        found = (sign * logits).gather(-1, index.cpu())
        torch.testing.assert_close(found.sort(descending=True)[0], (sign * logits).topk(k)[0], rtol=0, atol=0)
        assert all(len(row.unique()) == k for row in index)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    from hf_gdkd.scripts import distill

    folder = str(tmp_path_factory.mktemp("teacher") / "teacher")
    distill.main(
        ["--student", str(ROOT / "scripts/demo/cnn"), "--loss", "ce", *DIGITS, "--use_cpu", "--output_dir", folder]
    )
    return folder


@pytest.mark.parametrize(
    "precision, device",
    [("bf16", "cpu"), *(pytest.param(precision, "cuda", marks=GPU.marks) for precision in ("bf16", "fp16"))],
)
def test_a_run_in_half_precision_leaves_finite_float32_weights(precision, device, teacher, tmp_path):
    from hf_gdkd.scripts import distill

    words = ["--teacher", teacher, "--student", str(ROOT / "scripts/demo/vit"), *DIGITS, f"--{precision}"]
    words += ["--use_cpu"] if device == "cpu" else []
    metrics = distill.main([*words, "--loss", "gdkd3", "--output_dir", str(tmp_path / "student")])
    assert math.isfinite(metrics["nll"]) and 0 <= metrics["top1"] <= 1
    saved = load_file(tmp_path / "student/model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in saved.values())


@on_both
@pytest.mark.parametrize("optim", ["sgd", "adamw_torch_fused"])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights(optim, device, tmp_path):
    """The device leaves the step out; the state that is saved is that of a run that was stopped before it."""
    options = {"optim": optim, "logging_strategy": "no", **on(device)}
    data = make_data()
    distil(tmp_path / "good", make(Normed), data=data, callbacks=[StopAt(1)], **options)
    data[20] = data[20] | {"pixel_values": torch.full_like(data[20]["pixel_values"], torch.inf)}  # in the second step
    with pytest.raises(TrainingError, match="at step 2"):
        distil(tmp_path / "bad", make(Normed), data=data, **options)
    good, saved = (load_file(tmp_path / run / "checkpoint-1/model.safetensors") for run in ("good", "bad"))
    torch.testing.assert_close(saved, good, rtol=1e-5, atol=1e-6)


@on_both
def test_workers_give_the_batches_of_the_main_process_from_pinned_memory(device, tmp_path):
    runs = []
    for workers in (0, 2):
        trainer = distil(tmp_path / str(workers), make(Plain), dataloader_num_workers=workers, **on(device))
        assert trainer.args.dataloader_pin_memory is (device == "cuda")
        assert trainer.args.device.type == device
        runs.append(weights(trainer).cpu())
    torch.testing.assert_close(*runs, rtol=1e-6, atol=1e-7)


@on_both
def test_a_resumed_run_ends_with_the_same_weights(device, tmp_path):
    """Also the moving average, and the random numbers of the device."""
    options = {"num_train_epochs": 2, "ema_decay": 0.9, "trainer": GDKDTrainer, **on(device)}
    complete = distil(tmp_path / "complete", make(vit), **options)
    distil(tmp_path / "part", make(vit), callbacks=[StopAt(2)], **options)
    resumed = distil(tmp_path / "part", make(vit), resume=str(tmp_path / "part/checkpoint-2"), **options)
    torch.testing.assert_close(weights(resumed), weights(complete), rtol=1e-5, atol=1e-6)


@on_gpu  # tests/training/test_compile.py does it on a CPU
def test_compiled_equals_eager(device, tmp_path):
    runs = []
    for compiled in (False, True):
        torch._dynamo.reset()
        options = {"teacher": make(vit, 1), "trainer": GDKDTrainer, "torch_compile": compiled, **on(device)}
        trainer = distil(tmp_path / str(compiled), make(vit), data=make_data(60), num_train_epochs=2, **options)
        runs.append([row["loss"] for row in rows(trainer)])
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)


def launched(config: str, teacher: str, folder: Path, *more: str) -> dict[str, torch.Tensor]:
    """The weights that distill.py saves in one process of Accelerate's launcher."""
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        f"{ROOT}/scripts/accelerate/{config}",
    ]
    words = ["--num_processes", "1", f"{ROOT}/scripts/distill.py", "--teacher", teacher, "--student"]
    words += [f"{ROOT}/scripts/demo/vit", *DIGITS, "--loss", "gdkd", "--output_dir", str(folder), *more]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*launch, *words], env=env, text=True, capture_output=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "model.safetensors")


@on_gpu  # Accelerate refuses FSDP2 on a CPU
def test_fsdp2_on_one_gpu_takes_the_steps_of_one_process(device, teacher, tmp_path):
    split = launched("fsdp2.yaml", teacher, tmp_path / "fsdp2")
    alone = launched("one_gpu.yaml", teacher, tmp_path / "alone")
    torch.testing.assert_close(split, alone, rtol=1e-4, atol=1e-5)


@on_both
def test_a_teacher_that_does_not_fit_is_a_sentence(device, monkeypatch):
    if device == "cpu":
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    huge = nn.Module()
    huge.weight = nn.Parameter(torch.empty(10**12, device="meta"))  # 4 TB that nobody holds
    with pytest.raises(InputError, match=r"takes 4000\.0 GB, and .* free on cuda"):
        Teacher(huge, name="huge").to(torch.device("cuda"))


@on_gpu
@pytest.mark.parametrize("model, last", [(convnext, True), (vit, False)])
def test_a_convolutional_teacher_is_laid_out_channels_last(device, tmp_path, model, last):
    """With the same answers."""
    module = make(model)
    batch = {"pixel_values": torch.stack([row["pixel_values"] for row in make_data()])}
    expected = Teacher(module)(batch)
    teacher = place_teacher(Teacher(module), config(tmp_path, "kd", use_cpu=False))
    kernels = [each.weight for each in module.modules() if isinstance(each, nn.Conv2d) and each.kernel_size != (1, 1)]
    assert {weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels} == {last}
    logits = teacher({"pixel_values": batch["pixel_values"].to(device)})
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-2, atol=1e-3)


@on_both
@pytest.mark.parametrize("name", ["kd", "dkd", "gdkd", "gdkd3"])
def test_a_loss_takes_little_more_memory_than_plain_kd(name, device):
    """Forward and backward beyond the logits; compiled or not, the groups are views and indices of the same size."""
    from hf_gdkd.scripts.benchmark_losses import peak_mb, plain_kd

    g = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, 256, 1000, generator=g)).to(device)
    labels = torch.randint(1000, (256,), generator=g).to(device)
    assert peak_mb(build_loss(name), student, teacher, labels) <= 1.5 * peak_mb(plain_kd, student, teacher, labels)
