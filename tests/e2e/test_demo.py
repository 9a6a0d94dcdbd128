"""`make demo` in one epoch a model: the table and the picture are there."""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts/demo.py"


def test_the_demo_shows_a_table_and_a_picture(tmp_path):
    words = [sys.executable, str(SCRIPT), "--epochs", "1", "--output_dir", "demo"]
    done = subprocess.run(words, cwd=tmp_path, env=dict(os.environ), text=True, capture_output=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split(" | ") for line in (tmp_path / "demo/demo.md").read_text().splitlines() if line.startswith("| ")]
    assert [(row[0].strip("| "), row[1]) for row in rows[1:]] == [
        ("teacher", "ce"),
        *((student, loss) for student in ("vit", "cnn") for loss in ("ce", "kd", "gdkd", "gdkd3")),
    ]
    assert "one seed" in done.stdout.lower()
    assert Image.open(tmp_path / "demo/demo.png").size[0] > 500
