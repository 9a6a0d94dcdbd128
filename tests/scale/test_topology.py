"""The same optimizer steps at any topology: one process or two (gloo), whole batches or micro-batches, ragged ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launch import launch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("topology.py")
LOSSES = [
    "kd",
    "dkd",
    "gdkd",
    "gdkd3",
    "fitnet",
    "gdkd of maps",
    "gdkd+kd+fitnet",
]  # fitnet learns a projection beside the student
WHOLE, RAGGED = 160, 147  # five steps of 32; four, and 19 samples
TOPOLOGIES = {  # processes, batch of a process, micro-batches a step
    "one process": (1, 32, 1),
    "one process, 4 micro-batches": (1, 8, 4),
    "two processes": (2, 16, 1),
    "two processes, 2 micro-batches": (2, 8, 2),
}
# Runs that record the teacher's logits of the first epoch and read them in the others, and runs that only read them.
CACHED, FULL = [*TOPOLOGIES, "one process, 2 workers"], "cache of one process"
# Accelerate evens the last batches of two processes out with the first samples of the epoch.
REPEATED = [*range(RAGGED), *range(WHOLE - RAGGED)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every run, by (topology, data, loss): its weights as one vector, and its log."""
    folder = tmp_path_factory.mktemp("topology")
    data = {"whole": list(range(WHOLE)), "ragged": list(range(RAGGED)), "repeated": REPEATED}
    names = {}
    for processes in (1, 2):
        jobs = []
        for topology, (world, batch, accumulation) in TOPOLOGIES.items():
            for kind, indices in data.items():
                for loss in LOSSES if world == processes else ():
                    names[topology, kind, loss] = name = f"run{len(names)}"
                    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
                    if loss == "fitnet":
                        options["kd_weight"] = 1.0  # its own, 100, diverges at this learning rate
                    if "+" in loss:  # automatic weights, small for the learning rate, and k
                        options |= {
                            "k": "auto",
                            "kd_weight": "auto:0.3",
                            "loss_options": ["fitnet.normalize=false"],
                        }
                    options |= {"loss": loss.split()[0], "maps": "maps" in loss}
                    jobs.append({"name": name, "indices": indices, **options})
        for topology in CACHED:
            world, batch, accumulation = TOPOLOGIES.get(topology, (1, 32, 1))
            for kind, cache in (("live", None), ("recorded", f"cache of {topology}"), ("read", FULL)):
                if world == processes and (kind != "live" or topology == "one process"):
                    names[topology, kind, "gdkd"] = name = f"run{len(names)}"
                    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
                    options |= {"dataloader_num_workers": 2 if "workers" in topology else 0}
                    job = {"name": name, "indices": list(range(64)), "loss": "gdkd", "mixed": True, "cache": cache}
                    jobs.append(job | options)
        file = folder / f"{processes}.json"
        file.write_text(json.dumps(jobs))
        launch(file, processes, WORKER)
    return {
        key: (
            torch.cat([t.flatten() for t in load_file(folder / f"{name}.safetensors").values()]),
            json.loads((folder / f"{name}.json").read_text()),
        )
        for key, name in names.items()
    }


def assert_same(run, reference):
    weights, log = run
    expected, expected_log = reference
    assert (weights - expected).norm() <= 1e-5 * expected.norm()
    parts = set(expected_log[0]) - {"epoch", "grad_norm", "learning_rate", "data_wait"}
    assert {"loss", "ce", "kd"} <= parts and len(log) == len(expected_log) == 5
    for row, wanted in zip(log, expected_log, strict=True):
        assert {name: row[name] for name in parts} == pytest.approx({name: wanted[name] for name in parts}, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_same_steps(runs, topology, loss):
    assert_same(runs[topology, "whole", loss], runs["one process", "whole", loss])


@pytest.mark.parametrize("loss", LOSSES)
def test_a_ragged_end_in_micro_batches(runs, loss):
    assert_same(runs["one process, 4 micro-batches", "ragged", loss], runs["one process", "ragged", loss])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("topology", [name for name, (processes, *_) in TOPOLOGIES.items() if processes == 2])
def test_repeated_samples_are_the_only_difference_of_two_processes(runs, topology, loss):
    """Ragged data on two processes is the data that Accelerate makes of it, on one."""
    assert_same(runs[topology, "ragged", loss], runs["one process", "repeated", loss])
    with pytest.raises(AssertionError):
        assert_same(runs[topology, "ragged", loss], runs["one process", "ragged", loss])


@pytest.mark.parametrize("kind", ["recorded", "read"])
@pytest.mark.parametrize("topology", CACHED)
def test_a_cached_teacher_is_the_live_one(runs, topology, kind):
    """Of mixed pictures, whatever recorded the cache: 5 steps are two and a half epochs of 64 samples."""
    assert_same(runs[topology, kind, "gdkd"], runs["one process", "live", "gdkd"])


@pytest.mark.parametrize("loss", LOSSES)
def test_the_runs_moved_the_weights(runs, loss):
    """So that a relative difference of 1e-5 says something."""
    weights, log = runs["one process", "whole", loss]
    if loss == "gdkd of maps":  # of another model than the other runs
        assert abs(log[-1]["loss"] - log[0]["loss"]) > 1e-2 * log[0]["loss"]
        return
    other = runs["one process", "whole", "kd" if loss != "kd" else "gdkd"][0]
    assert (weights - other).norm() > 1e-3 * weights.norm()


def test_processes_of_mpirun_that_would_train_alone_are_refused(tmp_path):
    """A launcher's processes that Accelerate does not join: an error, not independent runs."""
    code = (
        "from hf_gdkd import GDKDConfig, GDKDTrainer; from torch import nn;"
        f"GDKDTrainer(nn.Linear(2, 2), None, GDKDConfig(output_dir={str(tmp_path)!r}, loss='ce', report_to='none'))"
    )
    env = {**os.environ, "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True, timeout=120)
    assert "the launcher started 2 processes, but each would train alone" in done.stderr
