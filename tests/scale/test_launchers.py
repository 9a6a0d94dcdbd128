"""The ready-made configurations, and the commands of the launchers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp import StateDictType
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from hf_gdkd.data.loading import load_data
from hf_gdkd.evaluation.measurement import measure_teacher
from hf_gdkd.training.teacher import Teacher

SCRIPTS = Path(__file__).parents[2] / "scripts"
DISTILL = str(SCRIPTS / "distill.py")
ENGINES = {
    "one_gpu": DistributedType.NO,
    "multi_gpu": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
}
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
MULTI_GPU = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]


def launch_arguments(name: str):
    """As `accelerate launch --config_file` reads them."""
    words = ["--config_file", str(SCRIPTS / f"accelerate/{name}.yaml"), "--main_process_port=0", DISTILL]
    words[2:2] = [] if name == "one_gpu" else ["--num_processes=2"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    args.deepspeed_fields_from_accelerate_config = ""
    return args


def test_every_configuration_is_tested():
    assert {path.stem for path in (SCRIPTS / "accelerate").iterdir()} == set(ENGINES)


@pytest.mark.parametrize("name", ENGINES)
def test_a_configuration_selects_its_engine(name):
    assert load_config_from_file(str(SCRIPTS / f"accelerate/{name}.yaml")).distributed_type == ENGINES[name]
    args = launch_arguments(name)
    assert (args.multi_gpu, args.use_fsdp, args.use_deepspeed) == (
        name == "multi_gpu",
        name == "fsdp2",
        name.startswith("deepspeed"),
    )
    assert args.num_processes == (1 if name == "one_gpu" else 2)


def test_fsdp2_is_of_version_2_and_saves_the_student_whole(monkeypatch):
    for key, value in prepare_multi_gpu_env(launch_arguments("fsdp2")).items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.state_dict_type) == (2, StateDictType.FULL_STATE_DICT)
    assert plugin.reshard_after_forward and not plugin.cpu_ram_efficient_loading


@pytest.mark.parametrize("stage", ["2", "3"])
def test_deepspeed_is_of_its_stage_and_saves_the_student_whole(stage):
    _, env = prepare_deepspeed_cmd_env(launch_arguments(f"deepspeed_zero{stage}"))
    assert env["ACCELERATE_USE_DEEPSPEED"] == "true" and env["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
    assert stage == "2" or env["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    left_to_the_trainer = ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_GRADIENT_CLIPPING")
    assert not set(left_to_the_trainer) & set(env)


def run(launcher: list[str], *words: str, cwd: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", *launcher, DISTILL, *words]
    return subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, timeout=300)


@pytest.mark.parametrize("launcher", [TORCHRUN, MULTI_GPU], ids=["torchrun", "accelerate"])
def test_processes_that_would_train_alone_are_refused(tmp_path, launcher):
    """Without --use_cpu and without GPUs Accelerate joins no processes, and says nothing."""
    done = run(launcher, "--student", "deit-tiny", "--loss", "ce", cwd=tmp_path)
    assert done.returncode != 0
    assert "error: the launcher started 2 processes, but each would train alone: use --use_cpu" in done.stderr


def test_torchrun_distils_with_a_split_teacher(tmp_path):
    """The numbers of the teacher, split over two processes, are those of the whole one."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(SCRIPTS / "demo/vit", num_labels=10)
    config.id2label = {i: str(i) for i in range(10)}
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "teacher")
    AutoImageProcessor.from_pretrained(SCRIPTS / "demo/vit").save_pretrained(tmp_path / "teacher")
    words = f"--teacher {tmp_path}/teacher --student {SCRIPTS}/demo/vit --student_init random --dataset digits"
    words += " --allow_weak_teacher true --shard_teacher true --max_steps 3 --eval_strategy no --save_strategy no"
    done = run(TORCHRUN, *words.split(), "--use_cpu", "--output_dir", "runs/student", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "runs/student/metrics.json").read_text())
    teacher = Teacher.load(str(tmp_path / "teacher"))
    _, expected = measure_teacher(teacher, load_data("digits").eval)
    found = metrics["teachers"][str(tmp_path / "teacher")]
    names = ("top1", "top5", "nll", "parameters", "flops")
    assert {n: found[n] for n in names} == pytest.approx({n: expected[n] for n in names}, rel=1e-5)
