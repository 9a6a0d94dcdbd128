"""DDP, FSDP2 and DeepSpeed on two CPU processes: the same student as one process, the teacher whole or split."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import engine_runs
import pytest
import torch
from safetensors.torch import load_file

from hf_gdkd.errors import InputError
from hf_gdkd.training.teacher import Teacher

WORKER = Path(engine_runs.__file__)
PARTS = ("loss", "grad_norm", "ce", "kd", "high", "low_top", "low_other")


def launch(folder: Path, engine: str) -> dict:
    """What the worker found on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(WORKER)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([*command, str(folder), engine], env=env, text=True, capture_output=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The reference: one process, whole batches."""
    folder = tmp_path_factory.mktemp("one")
    engine_runs.train(folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return folder, launch(folder, "torch")


@pytest.fixture(scope="module")
def zero(tmp_path_factory):
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed: pip install -e .[deepspeed]")
    folder = tmp_path_factory.mktemp("zero")
    return folder, launch(folder, "deepspeed")


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([t.flatten() for _, t in sorted(load_file(folder / "model.safetensors").items())])


def assert_same_weights(folder: Path, reference: Path) -> None:
    start = torch.cat([t.flatten() for _, t in sorted(engine_runs.vit(0).state_dict().items())])
    found, expected = weights(folder), weights(reference)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert (expected - start).norm() > 1e-2 * expected.norm()  # so that 1e-5 says something


def assert_same_run(folder: Path, reference: Path) -> None:
    assert_same_weights(folder, reference)
    logs = []
    for each in (folder, reference):
        state = json.loads((each / "checkpoint-4/trainer_state.json").read_text())
        logs.append([row[part] for row in state["log_history"] if "loss" in row for part in PARTS])
        logs[-1] += [row["eval_loss"] for row in state["log_history"] if "eval_loss" in row]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("run", ["ddp", "ddp_split", "fsdp2", "fsdp2_split", "fsdp2_resumed", "fsdp2_mended"])
def test_two_processes_train_the_student_of_one(one, two, run):
    assert_same_run(two[0] / run, one)


BLOCKS = {"vit": 2, "swin": 2, "convnext": 4, "resnet": 2, "timm": 4, "no lists": 0, "ensemble": 5}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_split_teacher_answers_as_the_whole(two, name):
    """Each block is gathered when it runs, as is the rest, and half of the weights are held after that."""
    difference, share, parts = two[1]["answers"][name]
    assert difference < 1e-6 and share == pytest.approx(0.5, abs=0.08) and parts == BLOCKS[name] + 1


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "ensemble"])
def test_fsdp2_splits_and_trains_every_student(two, name):
    assert two[1]["students"][name] == pytest.approx(0.5, abs=0.08)


def test_the_teacher_is_whole_until_split(two):
    shares = two[1]["share"]
    assert shares["fsdp2"] == 1
    assert shares["ddp_split"] == shares["fsdp2_student"] == pytest.approx(0.5, abs=0.02)


def test_every_process_loads_whole_models(two):
    """Also where FSDP was asked to have them on one only."""
    assert two[1]["whole"] == [True, True]


def assert_ended_before_the_spoiled_step(said: str) -> None:
    """The run that goes on from there is compared with the run of one process."""
    assert "at step 2 the loss is not finite in ce, kd" in said
    assert "checkpoint-1" in said and "repeats the step" in said


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_end_at_a_loss_that_is_not_finite(one, two, engine):
    assert_ended_before_the_spoiled_step(two[1]["ended"][engine])
    assert_same_weights(two[0] / f"{engine}_mended", one)


REFUSED = {
    "split batches": "per_device_train_batch_size 9 cannot be split among 2 processes: use a multiple of 2",
    "more processes than samples": "there are 2 processes and 1 training images: start fewer processes",
    "FSDP on CPUs": "on CPUs Accelerate runs DDP in its place: use GPUs",
    "FSDP1": "FSDP1 is not supported: set fsdp_version: 2",
    "sharded state": "SHARDED_STATE_DICT leaves no model.safetensors of the student: set FULL_STATE_DICT",
    "offload": "leave it out",
    "EMA": "ema_decay needs the student's whole weights on each device: leave it out",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_on_two_processes(two, case):
    assert REFUSED[case] in two[1]["refused"][case]


@pytest.mark.deepspeed
@pytest.mark.parametrize("run", [f"zero{stage}{kind}" for stage in (2, 3) for kind in ("", "_resumed", "_mended")])
def test_deepspeed_trains_the_student_of_one_process(one, zero, run):
    assert_same_run(zero[0] / run, one)


@pytest.mark.deepspeed
def test_zero_3_splits_the_teacher_and_zero_2_does_not(zero):
    assert zero[1]["share"] == {"zero2": 1, "zero3": pytest.approx(0.5, abs=0.02)}


@pytest.mark.deepspeed
def test_zero_3_leaves_models_whole_until_training(zero):
    assert zero[1]["whole"] == [True, True]


@pytest.mark.deepspeed
@pytest.mark.parametrize("run", ["zero2", "zero3"])
def test_deepspeed_ends_at_a_loss_that_is_not_finite(zero, run):
    """Although its backward pass takes the step: that was not begun."""
    assert_ended_before_the_spoiled_step(zero[1]["ended"][run])
    assert (zero[0] / f"{run}_mended_spoiled/checkpoint-1/latest").read_text() == "global_step1"


@pytest.mark.deepspeed
def test_what_deepspeed_cannot_do_is_said(zero):
    assert "ema_decay needs the student's whole weights" in zero[1]["refused"]["EMA"]
    assert "ZeRO-3 would leave no model.safetensors of the student" in zero[1]["refused"]["a student in parts"]


def test_one_process_splits_nothing(tmp_path):
    with pytest.raises(InputError, match="several processes, and there is one"):
        engine_runs.train(tmp_path, shard_teacher=True)


def test_a_teacher_that_does_not_fit_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3_500_000_000, 80_000_000_000))
    teacher = Teacher(torch.nn.Linear(1000, 1_000_000, bias=False, device="meta"), name="big")
    wanted = "teacher big takes 4.0 GB, and 3.5 GB are free on cuda:0: .* bfloat16.* --shard_teacher true"
    with pytest.raises(InputError, match=wanted):
        teacher.to(torch.device("cuda:0"))
