"""`make demo` in one epoch a model, or a part of one: the table and the picture are there."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts/demo.py"


@pytest.mark.parametrize("task, epochs, runs", [
    ("image-classification", "1", [("teacher", "ce"), *product(("vit", "cnn"), ("ce", "kd", "gdkd", "gdkd3"))]),
    ("semantic-segmentation", "0.1", [("scene-teacher", "ce"), *product(["scene-student"], ("ce", "gdkd"))]),
])  # fmt: skip
def test_the_demo_shows_a_table_and_a_picture(tmp_path, task, epochs, runs):
    words = [sys.executable, str(SCRIPT), "--task", task, "--epochs", epochs, "--output_dir", "demo"]
    done = subprocess.run(words, cwd=tmp_path, env=dict(os.environ), text=True, capture_output=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split(" | ") for line in (tmp_path / "demo/demo.md").read_text().splitlines() if line.startswith("| ")]
    assert [(row[0].strip("| "), row[1]) for row in rows[1:]] == runs
    assert "one seed" in done.stdout.lower()
    assert Image.open(tmp_path / "demo/demo.png").size[0] > 500
    page = "demo/vit-gdkd3/report/index.html"
    assert (tmp_path / page).is_file() == (page in done.stdout) == (task == "image-classification")
