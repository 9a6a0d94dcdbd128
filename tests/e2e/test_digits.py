"""Whole commands on the embedded digits, as a user types them: teacher, student, evaluation, loading."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
QUICK = "--dataset digits --learning_rate 3e-3 --num_train_epochs 3 --save_strategy no --disable_tqdm true --use_cpu"


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*words], cwd=cwd, env=env, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder in which a teacher was trained and a vision transformer distilled, both by the literal commands."""
    folder = tmp_path_factory.mktemp("digits")
    launch = [sys.executable, "-m", "accelerate.commands.launch", str(ROOT / "scripts/distill.py"), *QUICK.split()]
    demo = ROOT / "scripts/demo"
    teacher = ["--student", str(demo / "teacher"), "--student_init", "random", "--loss", "ce"]
    command(*launch, *teacher, "--output_dir", "runs/digits-teacher", cwd=folder)
    student = ["--teacher", "runs/digits-teacher", "--student", str(demo / "vit"), "--student_init", "random"]
    command(*launch, *student, "--loss", "gdkd3", "--output_dir", "runs/student", cwd=folder)
    return folder


def test_the_teacher_learns(runs):
    metrics = json.loads((runs / "runs/digits-teacher/metrics.json").read_text())
    assert metrics["top1"] > 0.85


def test_evaluation_gives_the_accuracy_that_training_reported(runs):
    script = str(ROOT / "scripts/evaluate.py")
    shutil.copytree(runs / "runs/student", runs / "runs/baseline")
    words = ["--model", "runs/student", "--teacher", "runs/digits-teacher"]
    command(sys.executable, script, *words, "--baseline", "runs/baseline", cwd=runs)
    measured = json.loads((runs / "runs/student/evaluation.json").read_text())
    reported = json.loads((runs / "runs/student/metrics.json").read_text())
    kept = ("top1", "top5", "nll", "ece", "agreement", "parameters", "flops")
    for role in ("model", "baseline"):
        assert [measured[role][key] for key in kept] == [reported[key] for key in kept]
    teacher = json.loads((runs / "runs/digits-teacher/metrics.json").read_text())
    assert measured["teacher"]["top1"] == teacher["top1"]


def test_the_output_folder_is_whole(runs):
    names = {path.name for path in (runs / "runs/student").iterdir()} - {"evaluation.json"}
    assert names == {
        "README.md", "config.json", "metrics.json", "model.safetensors",
        "preprocessor_config.json", "recipe.yaml", "training.png",
    }  # fmt: skip


def test_without_labels_the_student_learns_the_teachers_classes(runs):
    """Images in a folder, no classes; the card and the metrics then hold agreement, and no accuracy."""
    from hf_gdkd.data.sources import load_digits

    images = runs / "images"
    images.mkdir()
    for i, row in enumerate(load_digits()["train"]):
        row["image"].save(images / f"{i}.png")
    words = [
        "--teacher",
        "runs/digits-teacher",
        "--student",
        str(ROOT / "scripts/demo/cnn"),
        "--student_init",
        "random",
    ]
    words += ["--dataset", "images", "--label_free"]
    words += ["--crop_scale", "0.6", "--flip", "false", "--output_dir", "runs/unlabelled"]
    command(sys.executable, str(ROOT / "scripts/distill.py"), *words, *QUICK.split()[2:], cwd=runs)
    metrics = json.loads((runs / "runs/unlabelled/metrics.json").read_text())
    assert metrics["agreement"] > 0.5 and "top1" not in metrics
    card = (runs / "runs/unlabelled/README.md").read_text()
    assert (
        "accuracy was not measured" in card
        and "top-1" not in card
        and "top1" not in metrics["teachers"]["runs/digits-teacher"]
        and "model-index" not in card
    )
    assert json.loads((runs / "runs/unlabelled/config.json").read_text())["id2label"]["9"] == "9"


def test_two_teachers_mixed_images_a_moving_average_and_early_stopping(runs):
    """Everything at once; at this learning rate the evaluation soon gets worse, and the run ends."""
    script, cnn = str(ROOT / "scripts/distill.py"), str(ROOT / "scripts/demo/cnn")
    words = ["--teacher", "runs/digits-teacher", "runs/student", "--teacher_weights", "3", "1", "--student", cnn]
    words += ["--student_init", "random", "--loss", "gdkd", "--mixup_alpha", "0.2", "--cutmix_alpha", "1"]
    words += ["--auto_augment", "randaugment", "--repeated_augmentation", "2", "--ema_decay", "0.9"]
    words += ["--early_stopping_patience", "1", "--output_dir", "runs/two"]
    quick = QUICK.replace("3e-3", "0.5").replace("epochs 3", "epochs 30").replace("strategy no", "strategy epoch")
    command(sys.executable, script, *words, *quick.split(), cwd=runs)
    metrics = json.loads((runs / "runs/two/metrics.json").read_text())
    assert list(metrics["teachers"]) == ["runs/digits-teacher", "runs/student"]
    assert metrics["epochs"] < 30 and metrics["best"]["top1"] == metrics["top1"] >= metrics["last"]["top1"]
    assert metrics["best"]["epoch"] < metrics["last"]["epoch"] == metrics["epochs"]
    card = (runs / "runs/two/README.md").read_text()
    assert "distilled from the teachers `digits-teacher`, `student`" in card
    assert card.count("| teacher `") == 2 and "after the best (" in card
    assert "chosen on the same images (the split `test`)" in card


def test_the_student_loads_and_classifies(runs):
    from PIL import Image
    from transformers import AutoModelForImageClassification, pipeline

    model = AutoModelForImageClassification.from_pretrained(runs / "runs/student")
    assert model.config.id2label == {i: str(i) for i in range(10)}
    classify = pipeline("image-classification", str(runs / "runs/student"))
    answer = classify(Image.fromarray(np.zeros((8, 8), np.uint8)))
    assert {row["label"] for row in answer} <= set("0123456789")


def test_the_card_is_valid_and_true(runs):
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import model_index_to_eval_results

    card = ModelCard.load(runs / "runs/student/README.md")
    reported = json.loads((runs / "runs/student/metrics.json").read_text())
    assert card.data.eval_results[0].metric_value == reported["top1"]
    assert model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert f"| this model | {100 * reported['top1']:.2f} |" in card.text
    assert not re.search(r"{{|{%|None", card.text)


def test_the_recipe_repeats_the_run(runs):
    recipe = yaml.safe_load((runs / "runs/student/recipe.yaml").read_text())
    assert recipe["loss"] == "gdkd3" and recipe["teacher"] == ["runs/digits-teacher"]
    assert "teacher_revision" not in recipe
    script = str(ROOT / "scripts/distill.py")
    words = ["--config", "runs/student/recipe.yaml", "--output_dir", "runs/again"]
    command(sys.executable, script, *words, cwd=runs)
    first, again = (runs / f"runs/{name}/model.safetensors" for name in ("student", "again"))
    assert first.read_bytes() == again.read_bytes()


def test_a_finished_run_is_not_overwritten(runs):
    words = [str(ROOT / "scripts/distill.py"), "--config", "runs/student/recipe.yaml", "--output_dir", "runs/student"]
    done = subprocess.run([sys.executable, *words], cwd=runs, text=True, capture_output=True, timeout=120)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: folder runs/student already holds a run") and "--overwrite" in last
