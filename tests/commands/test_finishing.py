"""After training: the student is on disk before anything else, and nothing that fails then costs the run."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from hf_gdkd.commands import finishing
from hf_gdkd.evaluation import measurement
from hf_gdkd.scripts import distill
from hf_gdkd.tasks import image_classification
from hf_gdkd.training.trainer import GDKDTrainer

DEMO = Path(__file__).parents[2] / "scripts/demo"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A teacher of digits that has not learned yet."""
    folder = tmp_path_factory.mktemp("teacher")
    config = AutoConfig.from_pretrained(DEMO / "vit", num_labels=10)
    config.id2label = {i: str(i) for i in range(10)}
    torch.manual_seed(0)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    AutoImageProcessor.from_pretrained(DEMO / "vit").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(tmp_path, teacher):
    """A run of two steps into the folder that the fixture returns with it."""
    words = [*("--dataset", "digits", "--teacher", teacher, "--allow_weak_teacher", "--student", str(DEMO / "cnn"))]
    words += ["--student_init", "random", "--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no"]
    words += ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--output_dir", str(tmp_path / "student")]
    return tmp_path / "student", lambda *more: distill.main([*words, *more])


def failing(*args, **options):
    raise RuntimeError("out of luck\nand more")


FAILURES = {  # a step: the file that is missing without it, and what is said
    "side_by_side": (None, "the teacher was not measured"),
    "draw_training": ("training.png", "the picture of the training was not drawn"),
    "write_card": ("README.md", "the card was not written"),
    "measure": (None, "the student was not measured"),
}


@pytest.mark.parametrize("steps", [["measure"], ["side_by_side", "draw_training", "write_card"]], ids="+".join)
def test_a_step_that_fails_after_training_costs_nothing_else(run, monkeypatch, caplog, steps):
    folder, main = run
    for step in steps:
        module = finishing if hasattr(finishing, step) else image_classification
        monkeypatch.setattr(module, step, failing)
    metrics = main()
    files = {"README.md", "config.json", "metrics.json", "model.safetensors", "preprocessor_config.json"}
    files |= {"recipe.yaml", "training.png"}
    assert {path.name for path in folder.iterdir()} == files - {FAILURES[step][0] for step in steps}
    for step in steps:
        assert f"{FAILURES[step][1]} (RuntimeError): out of luck. The student is saved." in caplog.messages
    assert json.loads((folder / "metrics.json").read_text()) == metrics and metrics["epochs"] > 0
    assert ("top1" in metrics) == ("measure" not in steps)
    if "measure" in steps:
        assert "The model has not been measured." in (folder / "README.md").read_text()


def test_each_model_runs_once_over_the_data_and_the_teacher_last(run, monkeypatch):
    """Student, metrics and card are there before the teacher is measured."""
    folder, main = run
    runs, there = [], []
    predict = measurement.predict

    def noted(model, rows, *args, **options):
        runs.append(type(model).__name__)
        there.append({path.name for path in folder.glob("*")})
        return predict(model, rows, *args, **options)

    monkeypatch.setattr(measurement, "predict", noted)
    monkeypatch.setattr(GDKDTrainer, "evaluation_loop", failing)
    metrics = main()
    check, *measured = runs
    assert check == "ViTForImageClassification" and measured == ["ResNetForImageClassification", check]
    assert there[-1] >= {"README.md", "config.json", "metrics.json", "model.safetensors", "preprocessor_config.json"}
    assert "| teacher `" in (folder / "README.md").read_text() and "agreement" in metrics


def test_a_run_that_removes_the_checkpoint_it_resumed_from(run):
    """It ended with a traceback, without metrics and card."""
    folder, main = run
    checkpoints = ["--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "1"]
    main(*checkpoints)
    metrics = main(*checkpoints, "--max_steps", "3", "--resume_from_checkpoint", "last")
    assert not (folder / "checkpoint-2").exists() and metrics["ms_per_step"] > 0
