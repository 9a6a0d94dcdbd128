"""`compare.py` end to end on the embedded digits, two runs side by side."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
STUDENT = {"student": str(ROOT / "scripts/demo/cnn"), "learning_rate": 0.01}
SPEC = {
    "dataset": "digits",
    "teacher": STUDENT | {"num_train_epochs": 3, "validation_rows": 100},
    "students": {"cnn": STUDENT},
    "training": {"train_rows": 300, "num_train_epochs": 2, "per_device_train_batch_size": 32, "use_cpu": True},
    "validation": {"validation_rows": 100},
    "test_split": "test",
    "trials": 1,
    "seeds": [0, 1],
    "tuning_seed": 100,
    "losses": {"ce": [{}], "kd": [{"temperature": 4, "kd_weight": 2}]},
}


def test_a_comparison_writes_table_csv_and_picture(tmp_path):
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(SPEC, sort_keys=False))
    words = [str(ROOT / "scripts/compare.py"), "digits.yaml", "--workers", "2", "--output_dir", "runs"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *words, "--report", "RESULTS.md"],
        cwd=tmp_path, env=env, text=True, capture_output=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    text = (tmp_path / "RESULTS.md").read_text()
    assert "### digits, cnn" in text and "| kd | temperature 4, kd_weight 2 |" in text
    assert Image.open(tmp_path / "results/digits.png").size[0] > 500

    with open(tmp_path / "results/digits.csv") as file:
        ce, kd = csv.DictReader(file)
    assert (ce["loss"], kd["loss"]) == ("ce", "kd") and float(kd["ms_per_step"]) > 0
    assert float(kd["peak_mb"]) > float(ce["peak_mb"]) > 0.5  # the teacher takes room
    run = tmp_path / "runs/digits/final/cnn/kd/temperature=4,kd_weight=2/seed1"
    tested = json.loads((run / "test.json").read_text())
    assert json.loads(kd["last"])["1"] == tested["metrics"]["last"]["top1"]
    trained = json.loads((run / "train.json").read_text())
    assert trained["metrics"]["last"]["epoch"] == 2 and trained["flags"]["seed"] == 1
    assert 0.1 < float(ce["last_mean"]) < 1


def test_workers_end_with_a_killed_command(tmp_path):
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(SPEC | {"teacher": STUDENT | {"validation_rows": 100}}))
    words = [str(ROOT / "scripts/compare.py"), "digits.yaml", "--workers", "2", "--output_dir", "runs"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = subprocess.Popen([sys.executable, *words], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("runs/digits/teacher-*/log.txt")):  # until a worker is at work
        assert command.poll() is None
        time.sleep(0.1)
    workers = [child for child in psutil.Process(command.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    command.send_signal(signal.SIGKILL)
    command.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
