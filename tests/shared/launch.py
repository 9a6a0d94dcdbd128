"""Runs a worker of the tests in several processes."""

import os
import subprocess
import sys
from pathlib import Path


def launch(jobs: Path, processes: int, worker: Path) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(worker), str(jobs)], env=env, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
