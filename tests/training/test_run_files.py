"""What a run leaves beside the student."""

import os

import pytest
from transformers import TrainerState

from hf_gdkd.training.run_files import (
    ms_per_step,
    read_run_settings,
    replacing,
    write_metrics,
    write_run_settings,
)
from hf_gdkd.training.training_picture import draw_training


def test_evaluations_are_no_part_of_a_step():
    """10 seconds for 20 steps, 4 of them evaluations; after a checkpoint only what came after it counts."""
    state = TrainerState(
        global_step=20,
        log_history=[{"step": 5, "eval_runtime": 1.0}, {"step": 10, "loss": 2.0}, {"step": 20, "eval_runtime": 3.0}],
    )
    assert ms_per_step(10.0, state) == pytest.approx(1000 * (10 - 4) / 20)
    assert ms_per_step(10.0, state, 8) == pytest.approx(1000 * (10 - 3) / 12)
    assert ms_per_step(10.0, state, 20) is None


@pytest.mark.parametrize(
    "write",
    [
        lambda folder, value: write_run_settings(folder, {"k": value}),
        lambda folder, value: write_metrics(folder, {"top1": value}),
        lambda folder, value: draw_training(folder, [{"loss": value, "epoch": 1.0, "step": 1}], "run"),
    ],
    ids=["recipe.yaml", "metrics.json", "training.png"],
)
def test_a_run_file_is_written_completely_or_not_at_all(tmp_path, monkeypatch, write):
    write(tmp_path, 1.0)
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path, 2.0)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


def test_two_processes_may_write_one_file(tmp_path, monkeypatch):
    """Whoever ends last leaves its file, whole, and neither fails."""
    path = tmp_path / "recipe.yaml"
    with replacing(path) as one:
        one.write_text("of one")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            with replacing(path) as other:
                other.write_text("of the other")
        assert path.read_text() == "of the other"
    assert path.read_text() == "of one" and list(tmp_path.iterdir()) == [path]


def test_settings_are_read_as_they_were_written(tmp_path):
    assert read_run_settings(tmp_path) is None
    write_run_settings(tmp_path / "new", {"loss": "kd"})
    assert read_run_settings(tmp_path / "new") == {"loss": "kd"}
