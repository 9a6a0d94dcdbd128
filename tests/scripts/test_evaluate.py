"""evaluate.py: every role by itself, what is checked before anything is measured, and processes that share the rows."""

import json
import os
import socket
from multiprocessing import get_context
from pathlib import Path

import pytest
from accelerate import PartialState
from digit_models import save, save_segmenter

from hf_gdkd.errors import InputError
from hf_gdkd.scripts import evaluate
from hf_gdkd.tasks import image_classification
from hf_gdkd.training.teacher import Teacher

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def student(folder):
    """Trained on digits, with 100 rows held out."""
    save(folder / "student", 0)
    Path("student/recipe.yaml").write_text("dataset: digits\nvalidation_rows: 100\nseed: 5\n")
    return "student"


def test_two_revisions_of_one_model_are_two_models(folder, student, monkeypatch):
    other, load = save(folder / "other", 1), Teacher.load
    monkeypatch.setattr(evaluate, "pin_revision", lambda name, revision: revision)
    monkeypatch.setattr(
        Teacher, "load", lambda name, revision=None, **rest: load(other if revision == "old" else name, **rest)
    )
    found = evaluate.main(["--model", student, "--baseline", student, "--baseline_revision", "old"])
    assert [found[role]["revision"] for role in ("model", "baseline")] == [None, "old"]
    assert found["model"]["name"] == found["baseline"]["name"] and found["model"]["nll"] != found["baseline"]["nll"]
    assert json.loads(Path("student/evaluation.json").read_text()) == found


def test_the_rows_that_were_held_out(student, capsys, monkeypatch):
    """They do not depend on the seed of the training, and are those that distill.py held out."""
    seen, load = [], image_classification.load_data
    kept = lambda *args, **options: seen.append(load(*args, **options)) or seen[0]  # noqa: E731
    monkeypatch.setattr(image_classification, "load_data", kept)
    evaluate.main(["--model", student])
    trained = load("digits", validation_rows=100, seed=5, train_rows=50)
    assert [image.tobytes() for image in seen[0].eval["image"]] == [image.tobytes() for image in trained.eval["image"]]
    assert seen[0].train is None
    assert "model student on digits (train (100 rows held out), 100 images)" in capsys.readouterr().out


def test_without_labels(student):
    found = evaluate.main(["--model", student, "--teacher", student, "--label_free"])
    assert found["model"]["agreement"] == 1.0 and "top1" not in found["model"]
    assert found["model"].keys() >= {"parameters", "flops", "images_per_second"}


def test_a_label_map_is_for_the_models_that_need_it(folder, student):
    names = "zero one two three four five six seven eight nine".split()
    Path("map.json").write_text(json.dumps({str(i): name for i, name in enumerate(names)}))
    found = evaluate.main(["--model", student, "--teacher", save(folder / "t", 0, names), "--label_map", "map.json"])
    assert found["model"]["agreement"] == 1.0 and found["teacher"]["top1"] == found["model"]["top1"]


def test_each_role_is_compared_with_the_teacher(folder, student):
    teacher = save(folder / "other", 1)
    found = evaluate.main(["--model", student, "--teacher", teacher, "--baseline", teacher])
    assert found["baseline"]["agreement"] == 1.0 > found["model"]["agreement"] and "agreement" not in found["teacher"]


@pytest.mark.parametrize("words, says", [
    (["--output", "nothing/it.json"], "output nothing/it.json is in a folder that does not exist: create nothing"),
    (["--output", "."], "output . cannot be written"),
    (["--device", "gpu"], "device gpu is not there: use cpu, cuda"),
])  # fmt: skip
def test_what_is_checked_before_anything_is_measured(student, monkeypatch, words, says):
    monkeypatch.setattr(image_classification, "load_data", None)
    with pytest.raises(InputError, match=says):
        evaluate.main(["--model", student, *words])


def as_one_of_two(rank, port):
    """What torchrun starts, in a fork of this process."""
    PartialState._reset_state()
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    evaluate.main(["--model", "student", "--teacher", "student", "--device", "cpu", "--output", "two.json"])
    assert PartialState().num_processes == 2
    os._exit(0)  # gloo's threads may still abort the interpreter's own end


def test_two_processes_find_what_one_finds(student):
    one = evaluate.main(["--model", student, "--teacher", student, "--device", "cpu"])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [get_context("fork").Process(target=as_one_of_two, args=(rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0]
    two = json.loads(Path("two.json").read_text())
    for role, numbers in one.items():
        assert two[role] | {"images_per_second": 0} == numbers | {"images_per_second": 0}


def test_segmenters_are_measured_by_their_training_s_task(folder, capsys):
    """The task is that of the model's recipe.yaml, and others than it are refused."""
    student, other = save_segmenter(folder / "student", 0), save_segmenter(folder / "other", 1)
    Path("student/recipe.yaml").write_text("task: semantic-segmentation\ndataset: digit-scenes\n")
    found = evaluate.main(["--model", student, "--teacher", other, "--baseline", other, "--window", "48"])
    assert found["baseline"]["agreement"] == 1.0 > found["model"]["agreement"] > 0
    assert found["model"]["mean_iou"] != found["teacher"]["mean_iou"] and len(found["model"]["iou"]) == 11
    assert "IoU of background" in capsys.readouterr().out
    assert json.loads(Path("student/evaluation.json").read_text()) == found
    for flags, says in (
        (["--label_free"], "label_free is for --task image-classification"),
        (["--window", "0"], "window is 0"),
        (["--task", "x"], "task is 'x'"),
        (["--task", "image-classification", "--dataset", "digits"], "no image classifier"),
    ):
        with pytest.raises(InputError, match=says):
            evaluate.main(["--model", student, "--teacher", other, *flags])
