"""hf-gdkd distill on several GPUs: one process for each, and the exit codes that one process has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_gdkd.commands.launching import LAUNCHED, processes_to_start
from hf_gdkd.errors import InputError

CNN = Path(__file__).parents[2] / "scripts/demo/cnn"
QUICK = f"--student {CNN} --student_init random --loss ce --dataset digits --max_steps 2 --eval_strategy no --use_cpu"


@pytest.fixture(autouse=True)
def not_launched(monkeypatch):
    for name in (*LAUNCHED, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def gpus(monkeypatch, count):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("torch.cuda.init", lambda: pytest.fail("CUDA was initialised"))


@pytest.mark.parametrize("count, words, processes, rest", [
    (0, "--k 3", 1, "--k 3"),
    (1, "", 1, ""),
    (4, "--k 3", 4, "--k 3"),
    (4, "--use_cpu", 1, "--use_cpu"),
    (4, "--use_cpu false --k 3", 4, "--use_cpu false --k 3"),
    (4, "--num_processes 2 --k 3", 2, "--k 3"),
    (4, "--k 3 --num-processes=2", 2, "--k 3"),
    (0, "--use_cpu --num_processes 2", 2, "--use_cpu"),
    (0, "--num_processes 1", 1, ""),
])  # fmt: skip
def test_one_process_per_gpu_unless_told_otherwise(monkeypatch, count, words, processes, rest):
    gpus(monkeypatch, count)
    assert processes_to_start(words.split()) == (processes, rest.split())


@pytest.mark.parametrize("setting, words, processes", [
    ("use_cpu: true", "", 1),
    ("use_cpu: true", "--use_cpu false", 4),
    ("use_cpu: false", "--use_cpu", 1),
    ("k: 3", "", 4),
])  # fmt: skip
def test_a_settings_file_asks_for_the_cpu_as_the_flag_does(monkeypatch, tmp_path, setting, words, processes):
    gpus(monkeypatch, 4)
    (tmp_path / "settings.yaml").write_text(setting)
    words = ["--config", str(tmp_path / "settings.yaml"), *words.split()]
    assert processes_to_start(words) == (processes, words)


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_process_that_was_launched_launches_none(monkeypatch, name):
    gpus(monkeypatch, 4)
    monkeypatch.setenv(name, "1")
    assert processes_to_start([]) == (1, [])
    with pytest.raises(InputError, match="a launcher has started this process already"):
        processes_to_start(["--num_processes", "2"])


@pytest.mark.parametrize("before, after", [(None, "0"), ("2,3", "2")])
def test_one_process_of_a_machine_with_several_gpus_sees_one(monkeypatch, before, after):
    gpus(monkeypatch, 2)
    if before:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is put back
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert processes_to_start(["--num_processes", "1"]) == (1, [])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == after


@pytest.mark.parametrize("words, said", [
    ("--num_processes 3", "num_processes is 3 and this machine has 2 GPUs: use one process per GPU, or --use_cpu"),
    ("--num_processes two", "num_processes is two: use a whole number of at least 1"),
    ("--num_processes -1", "num_processes is -1: use"),
])  # fmt: skip
def test_processes_that_cannot_be_started(monkeypatch, words, said):
    gpus(monkeypatch, 2)
    with pytest.raises(InputError, match=said):
        processes_to_start(words.split())


def hf_gdkd(folder, *words):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "hf_gdkd.commands.main", "distill", *words, "--num_processes", "2"]
    return subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, timeout=300)


def test_two_processes_train_and_say_what_one_does(tmp_path):
    """A finished run; then the same command, which the folder's run refuses: once, with exit code 2."""
    words = [*QUICK.split(), "--output_dir", "runs/student", "--disable_tqdm", "true"]
    done = hf_gdkd(tmp_path, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("runs/student: top1 ") == 1 and (tmp_path / "runs/student/README.md").is_file()
    again = hf_gdkd(tmp_path, *words)
    assert again.returncode == 2 and again.stderr.startswith("error: folder runs/student already holds a run: ")
    assert len(again.stderr.splitlines()) == 1 and again.stdout == ""
