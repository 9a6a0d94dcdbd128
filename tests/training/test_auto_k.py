"""`k="auto"`: the knee of the teacher's top-k mass over training images, found before training and kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import yaml
from digit_models import ROOT, save
from tiny_cnns import CNN, BigCNN, InOrder, config, make, make_data, weights
from tiny_training import Plain, rows
from torch import nn
from transformers import ViTImageProcessor

from hf_gdkd import GDKDConfig, GDKDTrainer, Teacher
from hf_gdkd.data import Augmented, TrainTransform, View, collate, load_data
from hf_gdkd.data.teacher_cache import TeacherCache
from hf_gdkd.errors import InputError
from hf_gdkd.evaluation.distribution import Distribution
from hf_gdkd.losses.partition import knee
from hf_gdkd.scripts import distill
from hf_gdkd.training import auto_k
from hf_gdkd.training.auto_k import _batches
from hf_gdkd.training.cached_teacher import CachedTeacher


class Noisy:
    """Images with noise from the training's own random numbers."""

    def __init__(self):
        self.rows = make_data()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i] | {"pixel_values": self.rows[i]["pixel_values"] + 0.1 * torch.randn(3, 8, 8)}


def noisy_run(folder, **options):
    trainer = InOrder(make(CNN), make(BigCNN, 1), config(folder, "gdkd", **options), train_dataset=Noisy())
    trainer.train()
    return trainer


def test_it_is_the_run_of_the_number_that_it_finds(tmp_path, capsys):
    auto = noisy_run(tmp_path / "a", k="auto")
    assert f"k auto is {auto.args.k}: in 20 training images the teacher gives" in capsys.readouterr().out
    explicit = noisy_run(tmp_path / "b", k=auto.args.k)
    assert torch.equal(weights(auto), weights(explicit)) and rows(auto) == rows(explicit)


def test_it_is_the_knee_that_an_analysis_shows(tmp_path):
    trainer = InOrder(make(CNN), make(BigCNN, 1), config(tmp_path, "gdkd", k="auto"), train_dataset=make_data())
    pixels = torch.stack([row["pixel_values"] for row in make_data()])
    found = Distribution(5)
    found.add(make(BigCNN, 1)(pixels).detach())
    assert trainer.args.k == found.numbers()["knee"] == trainer.distillation_loss.k
    mass, images = auto_k.mean_top_mass(trainer)
    assert mass == pytest.approx(found.mass, abs=1e-6) and images == 20


def test_in_a_combination_and_where_the_smallest_is_2(tmp_path, monkeypatch):
    monkeypatch.setattr(auto_k, "mean_top_mass", lambda trainer: ([0.9, 0.91, 0.92, 0.93], 20))
    assert knee([0.9, 0.91, 0.92, 0.93]) == 1
    options = {"loss_options": ["gdkd.k=auto", "gdkd3.k=auto", "kd.weight=auto"], "temperature": 2.0}
    args = config(tmp_path, "gdkd+gdkd3+kd", **options)
    trainer = InOrder(make(CNN), make(BigCNN, 1), args, train_dataset=make_data())
    assert trainer.args.loss_options == ["gdkd.k=1", "gdkd3.k=2", "kd.weight=auto"]
    assert args.loss_options == options["loss_options"], "those of another trainer are found anew"


def test_from_a_cache_without_the_teacher(tmp_path):
    """It reads the logits that the first epoch reads, and records those that are missing."""
    digits, view = load_data("digits").train.select(range(30)), View(ViTImageProcessor(size={"height": 8, "width": 8}))
    teacher = make(BigCNN, 1)
    teacher.head = make(lambda: nn.Linear(18, 10), 2)

    def found(cached):
        cache = TeacherCache(tmp_path / "cache", {}, rows=30, classes=10, views=1, dtype="float32")
        listened = CachedTeacher(cache, lambda: Teacher(teacher)) if cached else Teacher(teacher)
        transform = TrainTransform(view, {"teacher_pixel_values": view}, crop_scale=0.5)
        caches = {"teacher_pixel_values": cache} if cached else {}
        data = Augmented(digits, transform, seed=7, views=1, caches=caches)
        student, args = make(lambda: Plain(10)), config(tmp_path, "gdkd", k="auto")
        return GDKDTrainer(student, listened, args, train_dataset=data, data_collator=collate).args.auto_notes

    live, recorded, calls = found(False), found(True), teacher.calls
    assert found(True) == recorded == live and teacher.calls == calls


@pytest.mark.parametrize("images, processes", [(10, 3), (4, 4), (9, 2)])
def test_processes_share_the_images(images, processes):
    """Each once, in as many batches on every process, because a sharded teacher needs all of them at a time."""
    seen, batches = [], []
    for index in range(processes):
        args = SimpleNamespace(per_device_train_batch_size=2, world_size=processes, process_index=index)
        trainer = SimpleNamespace(args=args, train_dataset=list(range(images)), data_collator=list)
        own = list(_batches(trainer))
        batches.append([len(batch) for batch, _ in own])
        seen += [row for batch, counted in own for row in batch[:counted]]
    assert sorted(seen) == list(range(images)) and all(each == batches[0] for each in batches)


def test_of_label_maps(tmp_path):
    class Maps(torch.nn.Conv2d):
        def __init__(self):
            super().__init__(3, 5, 1)

    torch.manual_seed(0)
    data = [row | {"labels": torch.randint(5, (40, 40)), "pixel_values": torch.randn(3, 40, 40)} for row in make_data()]
    trainer = InOrder(make(Maps), make(Maps, 1), config(tmp_path, "gdkd", k="auto"), train_dataset=data)
    assert 1 <= trainer.args.k <= 4 and "in 20 training images" in trainer.args.auto_notes[0]


@pytest.mark.parametrize("loss, options, said", [
    ("dist", {"k": "auto"}, "the loss 'dist' takes no option 'k'"),
    ("gdkd", {"k": "many"}, "k is many: use a whole number of at least 1, or auto"),
    ("gdkd", {"k": "2.5"}, "k is 2.5: use a whole number"),
    ("gdkd", {"k": "auto", "strategy": "worst"}, "k is auto, which is for the teacher's best classes"),
    ("gdkd", {"k": "auto", "class_k": [1, 1, 1, 1, 1]}, "class_k says how many classes are in the top group"),
])  # fmt: skip
def test_what_does_not_suit_is_a_sentence(tmp_path, loss, options, said):
    with pytest.raises(InputError, match=said):
        InOrder(make(CNN), make(BigCNN, 1), config(tmp_path, loss, **options), train_dataset=make_data())


def test_images_and_finite_logits_are_needed(tmp_path):
    with pytest.raises(InputError, match="k is auto, which training images are needed for"):
        InOrder(make(CNN), make(BigCNN, 1), config(tmp_path, "gdkd", k="auto"))
    broken = make(BigCNN, 1)
    broken.head.bias.data[0] = torch.nan
    with pytest.raises(InputError, match="the teacher's logits are NaN or infinite"):
        InOrder(make(CNN), broken, config(tmp_path, "gdkd", k="auto"), train_dataset=make_data())
    assert GDKDConfig(loss="gdkd", k="3", use_cpu=True).k == 3


def test_the_command_records_the_number_and_goes_on_with_it(tmp_path, monkeypatch):
    teacher, run = save(tmp_path / "teacher", 1), tmp_path / "run"
    words = ["--teacher", teacher, "--student", str(ROOT / "scripts/demo/cnn"), "--student_init", "random"]
    words += ["--dataset", "digits", "--train_rows", "64", "--allow_weak_teacher", "--use_cpu", "--report_to", "none"]
    words += ["--loss", "gdkd+dist", "--k", "auto", "--disable_tqdm", "true", "--output_dir", str(run)]
    distill.main([*words, "--num_train_epochs", "1"])
    k = yaml.safe_load((run / "recipe.yaml").read_text())["k"]
    assert isinstance(k, int) and f"- k auto is {k}: in 64 training images" in (run / "README.md").read_text()
    monkeypatch.setattr(auto_k, "mean_top_mass", None)  # it would fail
    distill.main([*words, "--num_train_epochs", "2", "--resume_from_checkpoint", "last"])
    assert yaml.safe_load((run / "recipe.yaml").read_text())["k"] == k
