"""The literal main command against a local Hub: real ids, the real architectures in small."""

import json
import os
import subprocess
import sys
from pathlib import Path

from hub_content import tiny_datasets, tiny_models
from hub_server import HubServer

ROOT = Path(__file__).parents[2]
COMMAND = "accelerate launch scripts/distill.py --teacher google/vit-base --student deit-tiny --loss gdkd3"


def test_the_literal_command(tmp_path):
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with HubServer() as hub:
        tiny_models(hub)
        tiny_datasets(hub)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, **hub.env(home=tmp_path / "home")}
        done = subprocess.run(COMMAND.split(), cwd=tmp_path, env=env, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    student = tmp_path / "runs/deit-tiny-gdkd3"
    metrics = json.loads((student / "metrics.json").read_text())
    assert metrics["top1"] > 0.5
    config = json.loads((student / "config.json").read_text())
    assert len(config["id2label"]) == 100
    assert "facebook/deit-tiny-patch16-224" in (student / "README.md").read_text()
