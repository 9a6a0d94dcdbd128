"""`hf-gdkd replay` on the checkpoint of a run that was stopped."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_gdkd.errors import InputError, TrainingError
from hf_gdkd.scripts.distill import main as distil
from hf_gdkd.scripts.replay import main
from hf_gdkd.training.stopped_step import BadStep
from hf_gdkd.training.teacher import Teacher

CNN = str(Path(__file__).parents[2] / "scripts/demo/cnn")
WORDS = ["--dataset", "digits", "--student", CNN, "--student_init", "random", "--loss", "ce", "--max_steps", "4"]
WORDS += ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--eval_strategy", "no", "--train_rows", "256"]


def test_a_run_is_stopped_and_its_step_repeated(tmp_path, capsys, monkeypatch):
    """The student's loss is spoiled as by a bug, and is finite when the step is repeated without it."""
    from hf_gdkd.training import label_maps

    real, calls = label_maps.F.cross_entropy, []

    def spoiled(*args, **options):
        calls.append(1)
        return real(*args, **options) * (torch.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(label_maps.F, "cross_entropy", spoiled)
    best = ["--eval_strategy", "epoch", "--load_best_model_at_end", "true", "--early_stopping_patience", "3"]
    with pytest.raises(TrainingError, match="at step 3 the loss is not finite in ce") as caught:
        distil([*WORDS, *best, "--output_dir", str(tmp_path)])
    checkpoint = tmp_path / "checkpoint-2"
    assert f"`hf-gdkd replay {checkpoint}` repeats the step." in str(caught.value)
    assert math.isnan(float(json.loads((checkpoint / "bad_step/step.json").read_text())["found"]["ce"]))

    repeated = main([str(checkpoint)])
    assert repeated["step"] == 3 and repeated["gradients"] == [] and 0 < repeated["found"]["ce"] < math.inf
    out = capsys.readouterr().out
    assert "step 3\n" in out and "(in the run: nan)" in out


def test_a_step_whose_teacher_was_read_from_a_cache_reads_the_same_logits(tmp_path, monkeypatch):
    """The first epoch of two steps is recorded, the second is read: what was read is in the step's batches."""
    from hf_gdkd.training import label_maps

    monkeypatch.chdir(tmp_path)
    distil([*WORDS, "--max_steps", "1", "--output_dir", "teacher"])
    real, calls = label_maps.F.cross_entropy, []

    def spoiled(*args, **options):
        calls.append(1)
        return real(*args, **options) * (torch.nan if len(calls) == 3 else 1.0)

    words = [*WORDS, "--loss", "kd", "--teacher", "teacher", "--allow_weak_teacher", "--output_dir", "run"]
    words += ["--per_device_train_batch_size", "128", "--teacher_cache", "cache", "--cache_views", "1"]
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="the loss is not finite in ce"):
        patch.setattr(label_maps.F, "cross_entropy", spoiled)
        distil(words)
    monkeypatch.setattr(Teacher, "load", lambda *args, **kwargs: pytest.fail("the teacher is loaded"))
    repeated = main(["run/checkpoint-2"])
    assert (
        repeated["found"]["kd"] == pytest.approx(repeated["recorded"]["kd"], rel=1e-5) and repeated["gradients"] == []
    )


def test_without_a_step_or_settings(tmp_path):
    with pytest.raises(InputError, match="holds no step to repeat"):
        main([str(tmp_path)])
    step = BadStep(
        3, 2, 5, {"ce": math.nan}, [{"pixel_values": torch.zeros(2, 3, 8, 8)}], {"cpu": torch.get_rng_state()}
    )
    step.save(tmp_path, SimpleNamespace(process_index=0, should_save=True))
    with pytest.raises(InputError, match=r"has no recipe.yaml: for a run from Python, .*repeat_step"):
        main([str(tmp_path)])
