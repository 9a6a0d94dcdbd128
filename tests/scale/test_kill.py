"""A run that is killed at any moment, checkpoint writing included, resumes and ends with the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_gdkd.errors import TrainingError

DRIVER = Path(__file__).with_name("killing.py")
KILLS, FULL = 20, 4
BREAKS = ["random numbers", "epoch of the augmentation", "optimizer and schedule", "moving average"]
BREAKS += ["automatic weights", "data order"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs, what happened to each, and what they printed."""
    folder = tmp_path_factory.mktemp("kill")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(DRIVER), str(folder)]
    done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((folder / "results.json").read_text())
    for name, result in results.items():
        print(name, json.dumps(result))
    assert all(result["ended"][-1] in (0, [0, 0]) for result in results.values()), done.stderr[-3000:]
    return folder, results, done.stdout + done.stderr


def weights(runs, name):
    """The student's, and those of the last checkpoint: the moving average, and the raw weights beside it."""
    (checkpoint,) = (runs[0] / name).glob("checkpoint-*")
    files = ("model.safetensors", "raw_weights.safetensors")
    return [(runs[0] / name / files[0]).read_bytes(), *((checkpoint / file).read_bytes() for file in files)]


@pytest.mark.parametrize("i", range(KILLS))
def test_a_killed_run_ends_with_the_same_weights(runs, i):
    result = runs[1][f"killed-{i}"]
    assert result["ended"][0] == -(signal.SIGXFSZ if "bytes" in result["plan"] else signal.SIGKILL)
    assert weights(runs, f"killed-{i}") == weights(runs, "reference")


def test_the_kills_hit_the_writing_of_checkpoints(runs):
    """So that the equalities above say something: many left a torn checkpoint, most of them beside a complete one."""
    left = [runs[1][f"killed-{i}"]["left"][0] for i in range(KILLS)]
    assert sum(not all(checkpoints.values()) for checkpoints in left) >= KILLS // 3
    assert sum(set(checkpoints.values()) == {True, False} for checkpoints in left) >= KILLS // 4


@pytest.mark.parametrize("name", ["nothing", *BREAKS])
def test_without_what_resuming_restores_the_weights_differ(runs, name):
    """The comparison can fail: nothing broken, the same weights; one thing not restored, others."""
    assert (weights(runs, name) == weights(runs, "reference")) == (name == "nothing")


@pytest.mark.parametrize("i", range(FULL))
def test_a_full_disk(runs, i):
    """One sentence and an exit code; the checkpoint before is complete, and the run can go on from it."""
    folder, results, printed = runs
    result = results[f"full-{i}"]
    assert result["ended"][0] == TrainingError.exit_code == 4
    whole = [name for name, is_complete in result["left"][0].items() if is_complete]
    said = [line for line in printed.splitlines() if line.startswith(f"error: {folder / f'full-{i}'}")]
    assert len(whole) == len(said) == 1 and " could not be written: File too large. " in said[0]
    assert f"{folder / f'full-{i}' / whole[0]} is complete: when that is solved, go on" in said[0]
    assert weights(runs, f"full-{i}") == weights(runs, "reference")


def test_a_run_killed_while_it_records_its_teacher_ends_with_the_same_weights_and_cache(runs):
    """`python tests/scale/killing.py FOLDER 20` does it twenty times."""
    folder, results, _ = runs
    caches = {name: f"{name} cache" for name in results if name.startswith("recording")}
    for name, cache in caches.items():
        assert weights(runs, name) == weights(runs, "recording")
        for file in ("view-0000.logits", "view-0001.logits", "view-0000.crc32", "view-0001.crc32"):
            assert (folder / cache / file).read_bytes() == (folder / "recording cache" / file).read_bytes()
    killed = [results[name] for name in caches if name != "recording"]
    signals = [-(signal.SIGXFSZ if "bytes" in result["plan"] else signal.SIGKILL) for result in killed]
    assert [result["ended"] for result in killed] == [[each, 0] for each in signals] and len(killed) == 3
    assert any(0 < result["recorded"] < 84 for result in killed)


@pytest.mark.parametrize("i", range(2))
def test_a_killed_run_on_label_maps(runs, i):
    result = runs[1][f"maps-{i}"]
    assert result["ended"] == [-signal.SIGKILL, 0]
    assert weights(runs, f"maps-{i}") == weights(runs, "maps")


def test_two_processes(runs):
    """Killed as soon as the main process takes a checkpoint for done: it holds the random state of both."""
    result = runs[1]["two killed"]
    assert result["killed"][0] == -signal.SIGKILL and all(result["left"][0].values())
    assert weights(runs, "two killed") == weights(runs, "two") != weights(runs, "reference")
