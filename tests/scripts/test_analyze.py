"""analyze.py: the same numbers as computed another way, from images and from a cache; what it refuses."""

import json
import os
import shlex
import socket
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from digit_models import save, save_segmenter
from matplotlib.figure import Figure
from transformers import ViTImageProcessor

from hf_gdkd.commands.arguments.parsing import parse
from hf_gdkd.data.loading import load_data
from hf_gdkd.data.teacher_cache import TeacherCache
from hf_gdkd.data.views import View
from hf_gdkd.errors import InputError
from hf_gdkd.evaluation import costs, segmentation_report, student_report, teacher_report
from hf_gdkd.evaluation.measurement import measure_teacher
from hf_gdkd.evaluation.metrics import classification_metrics, log_softmax
from hf_gdkd.evaluation.views_report import same_crops
from hf_gdkd.scripts import analyze, cache, evaluate
from hf_gdkd.tasks import semantic_segmentation
from hf_gdkd.training.teacher import Teacher


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_gdkd.evaluation.distribution_figures.SHOWN", 2)  # which is quicker
    save(tmp_path / "teacher", 0)
    Path("teacher/recipe.yaml").write_text("dataset: digits\nvalidation_rows: 60\n")
    return tmp_path


def same(numbers, logits, labels):
    expected = classification_metrics(logits, labels)
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    probs = np.sort(np.exp(log_softmax(logits)), 1)[:, ::-1]
    np.testing.assert_allclose(numbers["mass"], probs.cumsum(1)[:, :9].mean(0), rtol=1e-5)


def test_a_teacher_on_the_rows_that_were_held_out(folder, capfd):
    found = analyze.main(["--teacher", "teacher", "--output_dir", "report", "--batch_size", "25"])
    rows = load_data("digits", validation_rows=60).eval
    teacher = Teacher.load("teacher")
    teacher.match([str(i) for i in range(10)], teacher.view)
    logits, _ = measure_teacher(teacher, rows)
    same(found["predictions"]["images"], logits, np.array(rows["labels"]))
    assert found["predictions"]["augmented images"]["images"] == found["images"] == 60
    assert json.loads(Path("report/analysis.json").read_text())["images"] == 60
    advice, augmented = found["advice"], found["predictions"]["augmented images"]
    assert advice["k"] == augmented["knee"] and found["cost"]["parts"].keys() == {
        "teacher, live", "teacher, from a cache",
    }  # fmt: skip
    for loss, command in advice["commands"].items():
        script, args = parse([*shlex.split(command)[2:], "--use_cpu"])
        assert (script.teacher, script.dataset, args.loss) == (["teacher"], "digits", loss)
        assert args.k == (advice["k"] if loss == "gdkd" else None)
    assert np.load("report/averages.npz")["prediction"].shape == (10, 10)
    said = capfd.readouterr()
    assert said.out == "the report is in report/index.html\n" and "profiler" not in said.err


CODE = """
import sys
import hf_gdkd.evaluation.distribution_figures as figures
from hf_gdkd.scripts import analyze
figures.SHOWN = 2
analyze.main(["--teacher_cache", "cache", "--output_dir", "report"])
print(*sys.modules)
"""


def test_a_cache_is_read_and_what_models_need_is_not_even_imported(folder):
    """That takes a quarter of a gigabyte, and 50,000 x 1,000 logits are to be analysed in one."""
    words = ["--teacher", "teacher", "--dataset", "digits", "--train_rows", "100", "--cache_views", "2", "--use_cpu"]
    cache.main(["record", "cache", *words, "--allow_weak_teacher"])
    done = subprocess.run([sys.executable, "-c", CODE], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not {"torchvision", "timm", "transformers.trainer"} & set(done.stdout.split())
    found = json.loads(Path("report/analysis.json").read_text())
    rows = load_data("digits", train_rows=100).train
    logits, known = TeacherCache.open("cache").read(rows["sample_id"], [0] * 100)
    assert known.all() and found["images"] == 100 and found["teacher"] == "teacher"
    same(found["predictions"]["images"], logits, np.array(rows["labels"]))
    with pytest.raises(InputError, match="has 1,437 rows of other images than the split test of digits"):
        analyze.main(["--teacher_cache", "cache", "--train_split", "test", "--output_dir", "report"])


@pytest.mark.parametrize("words, said", [
    ([], "there is nothing to look at: use --student or --teacher_cache or --teacher."),
    (["--student", "teacher"], "there is no teacher: use --teacher, or --teacher_cache with a folder that was"),
    (["--teacher", "teacher", "--temperature", "0"], "temperature is 0.0: use a number above 0."),
    (["--teacher", "teacher", "--student_revision", "x"], "student_revision is of no model: use --student"),
    (["--teacher_cache", "teacher"], "folder teacher is not a teacher cache: it has no cache.json."),
    (["--teacher", "teacher", "--output_dir", "teacher/config.json"], "output_dir teacher/config.json cannot be made"),
])  # fmt: skip
def test_what_is_refused(folder, words, said):
    with pytest.raises(InputError, match=said.replace(".", r"\.")):
        analyze.main(["--output_dir", "report", *words])
    assert not Path("report/index.html").exists()


def test_a_student_beside_its_teacher(folder, monkeypatch):
    monkeypatch.setattr(costs, "peak_mb_during", lambda work, device: 10.0)
    save(folder / "student", 1)
    words = ["--teacher", "teacher", "--student", "student", "--dataset", "digits", "--validation_rows", "60"]
    whole = analyze.main([*words, "--output_dir", "report"])
    parts, found = whole["cost"]["parts"], whole["comparison"]
    weights = sum(each.nbytes for each in Teacher.load("teacher").model.parameters()) / 1e6
    assert {name: each["megabytes"] for name, each in parts.items()} == pytest.approx({
        "teacher, live": 10 + weights, "teacher, from a cache": 10, "student, forward and backward": 10 + 3 * weights,
        "a step, live": 10 + 4 * weights, "a step, from a cache": 10 + 3 * weights,
    })  # fmt: skip
    judged = evaluate.main(["--model", "student", *words[:2], *words[4:], "--output", "evaluation.json"])
    for role, name in (("teacher", "teacher"), ("student", "model")):
        expected = {key: judged[name][key] for key in ("top1", "top5", "nll", "ece")}
        assert {key: found["predictions"][role][key] for key in expected} == pytest.approx(expected, rel=1e-5)
        clean = {values[role][0] for values in found["robustness"].values()}
        assert clean == {judged[name]["top1"]}
    assert found["agreement"]["agreement"] == judged["model"]["agreement"]
    assert len(found["most_different"]) == 12
    pictures = {path.stem for path in Path("report").glob("*.png")}
    assert pictures >= {"agreement", "different", "correlations", "calibration-of-both", "features", "robustness"}


def test_both_models_see_the_same_part_of_an_image():
    """A model with another size and normalisation: the crops are those of the other, resized."""
    small, large = (
        View(ViTImageProcessor(size={"height": side, "width": side}, image_mean=[mean] * 3))
        for side, mean in ((8, 0.5), (16, 0.1))
    )
    rows = load_data("digits", validation_rows=5).eval
    crops = same_crops({"teacher": large, "student": small}, rows, crop_scale=0.3, flip=True)
    for a, b in zip(crops["teacher"], crops["student"], strict=True):
        assert a.shape == (16, 16, 3) and b.shape == (8, 8, 3) and a.min() >= 0 and a.max() <= 1
        pooled = a.reshape(8, 2, 8, 2, 3).mean((1, 3))
        assert np.corrcoef(pooled.ravel(), b.ravel())[0, 1] > 0.95
        assert np.corrcoef(pooled[:, ::-1].ravel(), b.ravel())[0, 1] < 0.95


def as_one_of_two(rank, port, words):
    """What torchrun starts, in a fork of this process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    PartialState._reset_state()
    analyze.main(words)
    os._exit(0)


def test_two_processes_share_the_images(folder, monkeypatch):
    """They write the numbers of one; the batches are of 25, 25 and 10 images."""
    save(folder / "student", 1)
    for name in ("draw_agreement", "draw_different", "draw_correlations", "draw_calibration", "draw_robustness"):
        monkeypatch.setattr(student_report, name, lambda *args: Figure())
    monkeypatch.setattr(student_report, "robustness", lambda *args, **options: {})
    monkeypatch.setattr(student_report, "_features", lambda *args, **options: None)
    for name in ("draw_predictions", "draw_rest", "draw_entropies", "draw_calibration", "draw_mass", "draw_confusions"):
        monkeypatch.setattr(teacher_report, name, lambda *args: Figure())
    words = ["--teacher", "teacher", "--student", "student", "--dataset", "digits", "--validation_rows", "60"]
    words += ["--batch_size", "25", "--device", "cpu", "--output_dir"]
    alone = analyze.main([*words, "alone"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        get_context("fork").Process(target=as_one_of_two, args=(rank, port, [*words, "shared"])) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0]
    shared = json.loads(Path("shared/analysis.json").read_text())
    for each in (alone, shared):
        each.pop("cost")
        each.pop("figures", None)  # of the JSON alone
    assert shared["images"] == 60
    flat = {name: dict(leaves(each)) for name, each in (("alone", alone), ("shared", shared))}
    assert flat["shared"].keys() == flat["alone"].keys()
    assert {x: y for x, y in flat["shared"].items() if isinstance(y, float)} == pytest.approx(
        {x: y for x, y in flat["alone"].items() if isinstance(y, float)}, rel=1e-4, abs=1e-6
    )


def leaves(value, path=()):
    """The values of nested dictionaries and lists, by their path."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if inner is None:
        yield path, value
    else:
        for key, each in inner:
            yield from leaves(each, (*path, str(key)))


def test_segmenters_by_pixel(folder, monkeypatch):
    """The same numbers as evaluate.py, and the pixels' as computed from the logits one image after the other."""
    monkeypatch.setattr(segmentation_report, "PIXELS", 10**6)  # all of them
    monkeypatch.setattr(segmentation_report, "FEATURE_POINTS", 30)
    kept, load = [], semantic_segmentation.load_segmentation

    def few(*args, **options):
        data = load(*args, **options)
        data.eval = data.eval.select(range(6))
        kept.append(data)
        return data

    monkeypatch.setattr(semantic_segmentation, "load_segmentation", few)
    for name, seed in (("seg-teacher", 0), ("seg-student", 1)):
        save_segmenter(folder / name, seed)
    words = ["--teacher", "seg-teacher", "--task", "semantic-segmentation", "--dataset", "digit-scenes"]
    found = analyze.main([*words, "--student", "seg-student", "--output_dir", "report"])
    judged = evaluate.main([*words, "--model", "seg-student", "--output", "evaluation.json"])
    own = found["comparison"]
    assert own["measured"]["teacher"]["iou"] == judged["teacher"]["iou"]
    assert own["measured"]["student"]["mean_iou"] == judged["model"]["mean_iou"]
    assert own["agreement"]["agreement"] == pytest.approx(judged["model"]["agreement"])
    for role, name in (("teacher", "teacher"), ("student", "model")):
        assert own["predictions"][role]["top1"] == pytest.approx(judged[name]["pixel_accuracy"])
    for role, values in own["robustness"]["blur"].items():  # of all pixels, as measured, where nothing is damaged
        assert len(values) == 4 and values[0] == pytest.approx(own["measured"][role]["mean_iou"])
    words, advice = shlex.split(found["advice"]["commands"]["auto"])[2:], found["advice"]
    assert parse([*words, "--use_cpu"])[0].task == "semantic-segmentation"
    assert {each["loss"] for each in advice["auto"].values()} == {"gdkd"}
    assert advice["known_gains"]["case"]["name"] == "fashion-scenes"
    assert found["cost"]["parts"].keys() == {"teacher, live", "student, forward and backward", "a step, live"}
    masks = np.concatenate([np.asarray(mask).ravel() for mask in kept[0].eval["labels"]])
    assert found["pixels"] == (masks != 255).sum() and Path("report/maps.png").is_file()
    page = Path("report/index.html").read_text()
    assert ">pixels</button>" in page and ">images</button>" not in page
    assert "t-SNE of 30 pixels" in page and Path("report/features.png").is_file()
    assert "Intersection over union by class" in page and page.count("data:image/png") >= 9


def test_few_pixels_are_spread_over_those_with_a_label(monkeypatch):
    monkeypatch.setattr(segmentation_report, "PIXELS", 3)
    labels = torch.tensor([[255, 0, 1], [2, 255, 3], [4, 5, 255]])
    assert segmentation_report.spread_pixels(labels).tolist() == [1, 3, 7]
    assert segmentation_report.spread_pixels(torch.full((2, 2), 255)).tolist() == []
