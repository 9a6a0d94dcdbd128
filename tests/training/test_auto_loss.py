"""`loss="auto"`: it is the run of the settings that it stands for, works where a loss cannot, and is recorded."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from digit_models import save
from timm import create_model
from tiny_cnns import CNN, BigCNN, InOrder, config, distil, make, make_data, vit, weights
from tiny_training import Plain, StopAt, rows
from tiny_training import make_data as small_images
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hf_gdkd import GDKDConfig, GDKDTrainer, Teacher
from hf_gdkd.data.teacher_cache import TeacherCache
from hf_gdkd.errors import InputError
from hf_gdkd.scripts import distill
from hf_gdkd.training import auto_loss
from hf_gdkd.training.auto_loss import family_of
from hf_gdkd.training.auto_table import CNN as CNN_STUDENT
from hf_gdkd.training.auto_table import ROWS, TRANSFORMER, Row
from hf_gdkd.training.cached_teacher import CachedTeacher
from hf_gdkd.training.same_run import KEPT_ARGUMENTS
from hf_gdkd.training.teacher import Ensemble

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("student", [CNN, vit])
def test_it_is_the_run_of_the_settings_that_it_prints(tmp_path, capsys, student):
    auto = distil(tmp_path / "a", "auto", student, temperature=2.0)
    said = capsys.readouterr().out.splitlines()
    words = shlex.split(said[0].partition(" stands for ")[2])
    assert "  as you set it: temperature=2.0." in said
    start = words.index("--loss_options")
    options = {"loss_options": words[start + 1 :]} | {
        name[2:]: value if name == "--loss" else float(value)
        for name, value in zip(words[:start:2], words[1:start:2], strict=True)
    }
    assert options["temperature"] == auto.distillation_loss.members["dist"].temperature == 2.0
    explicit = distil(tmp_path / "b", options.pop("loss"), student, **options)
    assert torch.equal(weights(auto), weights(explicit)) and rows(auto) == rows(explicit)
    kept = [{name: trainer.args.to_dict()[name] for name in KEPT_ARGUMENTS} for trainer in (auto, explicit)]
    assert kept[0] == kept[1]


def test_a_resumed_run_and_the_arguments_of_two_trainers(tmp_path):
    """A trainer resolves `auto` for its own student alone."""
    whole = distil(tmp_path / "a", "auto", num_train_epochs=2)
    distil(tmp_path / "b", "auto", num_train_epochs=2, callbacks=[StopAt(4)])
    resumed = distil(tmp_path / "b", "auto", num_train_epochs=2, resume=True)
    assert torch.equal(weights(whole), weights(resumed))
    args = config(tmp_path / "c", "auto", hub_token="secret")
    trainers = [InOrder(make(each), make(BigCNN, 1), args, train_dataset=make_data()) for each in (CNN, vit)]
    assert args.loss == "auto" and all(each.args.loss == "dist+fitnet" for each in trainers)
    assert trainers[0].args.hub_token == "secret"
    assert ["CNN" in trainers[0].args.auto_notes[0], "transformer" in trainers[1].args.auto_notes[0]] == [True, True]


def segmenter(classes=5):
    shape = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "decoder_hidden_size": 8}
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=classes, **shape))


def cached(dtype, folder):
    cache = TeacherCache(folder, {}, rows=20, classes=5, views=1, dtype=dtype)
    return CachedTeacher(cache, lambda: Teacher(make(BigCNN, 1)))


@pytest.mark.parametrize("what, student, teacher, options, loss, because", [
    ("no labels", CNN, BigCNN, {"ce_weight": 0.0}, "kd+dist+fitnet", "ce_weight=0.0: there are no labels."),
    ("cache", CNN, "float16", {}, "dist", "not dist+fitnet: loss fitnet compares features, and a teacher cache holds"),
    ("top 3", CNN, "top-3", {}, "kd", "not dist: cache_dtype top-3 keeps the most probable classes"),
    ("cache without labels", CNN, "int8", {"ce_weight": 0.0}, "kd+dist", "not kd+dist+fitnet: loss fitnet compares"),
    ("two", CNN, Ensemble, {}, "dist", "not dist+fitnet: loss dist+fitnet is on hidden features, of one model"),
    ("compiled", CNN, BigCNN, {"torch_compile": True}, "dist", "not dist+fitnet: loss dist+fitnet listens to"),
    ("label maps", segmenter, segmenter, {}, "gdkd", None),
    ("few", lambda: segmenter(3), lambda: segmenter(3), {}, "kd", None),
    ("two classes", lambda: vit_of(2), lambda: vit_of(2), {}, "kd+fitnet", None),
])  # fmt: skip
def test_what_a_run_cannot_have_is_left_out_with_the_reason(tmp_path, what, student, teacher, options, loss, because):
    if teacher is Ensemble:
        teacher = Ensemble([Teacher(make(BigCNN, seed)) for seed in (1, 2)])
    else:
        teacher = cached(teacher, tmp_path / "cache") if isinstance(teacher, str) else make(teacher, 1)
    args = config(tmp_path, "auto", **options)
    trainer = InOrder(make(student), teacher, args, train_dataset=make_data())
    assert trainer.args.loss == loss and trainer.distillation_loss is not None
    assert because is None or any(note.startswith(because) for note in trainer.args.auto_notes)
    assert not any(note.startswith("as you set it") for note in trainer.args.auto_notes)


def vit_of(classes):
    model = vit()
    model.config.num_labels = classes
    model.classifier = nn.Linear(model.config.hidden_size, classes)
    return model


def test_models_without_features(tmp_path):
    trainer = distil_plain(tmp_path, "auto")
    assert trainer.args.loss == "dist" and any(note.startswith("not dist+fitnet: ") for note in trainer.args.auto_notes)


def distil_plain(folder, loss, **options):
    args = config(folder, loss, **options)
    trainer = GDKDTrainer(make(Plain), make(Plain, 1), args, train_dataset=small_images())
    trainer.train()
    return trainer


@pytest.mark.parametrize("options, said", [
    ({"k": 3}, "loss auto stands for dist\\+fitnet here: the loss 'dist\\+fitnet' takes no option 'k'"),
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"loss_options": {"gdkd.k": 3}}, "gdkd.k is for no part of the loss 'dist\\+fitnet'"),
])  # fmt: skip
def test_what_does_not_suit_is_a_sentence(tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        distil(tmp_path, "auto", **options)


def test_a_teacher_is_needed(tmp_path):
    with pytest.raises(InputError, match="loss auto needs a teacher"):
        InOrder(make(CNN), None, config(tmp_path, "auto"), train_dataset=make_data())


def test_options_of_the_user_take_the_place_of_the_tables(tmp_path):
    options = {"fitnet.weight": 3, "dist.gamma": 1.5}
    trainer = distil(tmp_path, "auto", loss_options=options, normalize=False, ce_weight=0.5)
    loss = trainer.distillation_loss
    assert loss.member_weights == {"dist": "auto:4", "fitnet": 3} and trainer.args.ce_weight == 0.5
    assert loss.members["fitnet"].normalize is False and loss.members["dist"].weights["intra"] == 1.5
    trainer = distil(tmp_path, "auto", kd_weight="auto")
    assert trainer.distillation_loss.member_weights == {"dist": "auto", "fitnet": "auto"}


def test_the_rows_of_the_table():
    """Each is a loss that needs no labels and takes mixed ones, has reasons, and one suits whatever the run is."""
    for row in ROWS:
        args = GDKDConfig(loss="auto", use_cpu=True)
        auto_loss._set(args, row)
        args.complete_loss()
        loss = args.build_loss()
        assert loss.takes_soft_labels and not loss.needs_labels and args.kd_weight != 0
        assert row.source and all(reason.endswith(".") for _, reason in row.settings.values())
    for student in (CNN_STUDENT, TRANSFORMER):
        for classes in (2, 3, 10, math.inf):
            for labels, maps in ((True, False), (False, False), (True, True), (False, True)):
                run = auto_loss.Run(student, classes, 5.0, labels, maps)
                fitting = [row for row in ROWS if run.suits(row)]
                assert fitting and (maps or fitting[-1].settings["loss"][0] == "kd")
    assert not auto_loss.Run(CNN_STUDENT, 10, 5.0, True, False).suits(Row({}, "", epochs=(10, 20)))


@pytest.mark.parametrize("name, family", [
    ("resnet10t", CNN_STUDENT), ("convnext_atto", CNN_STUDENT), ("efficientnet_b0", CNN_STUDENT),
    ("vit_tiny_patch16_224", TRANSFORMER), ("swin_tiny_patch4_window7_224", TRANSFORMER),
])  # fmt: skip
def test_cnns_and_transformers(name, family):
    with torch.device("meta"):
        assert family_of(create_model(name)) == family


def test_the_command_records_what_it_stands_for(tmp_path, monkeypatch, capsys):
    """In recipe.yaml and the card; the same command goes on with it, whatever the table says by then."""
    teacher, run = save(tmp_path / "teacher", 1), tmp_path / "run"
    words = ["--teacher", teacher, "--student", str(ROOT / "scripts/demo/cnn"), "--student_init", "random"]
    words += ["--dataset", "digits", "--train_rows", "128", "--allow_weak_teacher", "--use_cpu", "--loss", "auto"]
    words += ["--report_to", "none", "--disable_tqdm", "true", "--temperature", "3", "--output_dir", str(run)]
    distill.main([*words, "--num_train_epochs", "1"])
    settings = yaml.safe_load((run / "recipe.yaml").read_text())
    chosen = {"loss": "dist+fitnet", "temperature": 3.0, "ce_weight": 1.0, "kd_weight": 1.0}
    options = ["dist.weight=auto:4", "fitnet.weight=30", "fitnet.normalize=true", "fitnet.stages=all"]
    assert settings.items() >= (chosen | {"loss_options": options}).items()
    card = (run / "README.md").read_text()
    assert "(auto:4 × dist + 30 × fitnet)" in card
    assert "- loss auto (a CNN, 10 classes, 1 epoch) stands for --loss dist+fitnet" in card
    monkeypatch.setattr(auto_loss, "ROWS", ())
    distill.main([*words, "--num_train_epochs", "2", "--resume_from_checkpoint", "last"])
    assert yaml.safe_load((run / "recipe.yaml").read_text())["loss_options"] == options
    assert "- loss auto was resolved when the run began." in (run / "README.md").read_text()
    with pytest.raises(InputError, match=r"this run began with temperature 3.0, and would go on with 2.0"):
        distill.main([*words, "--temperature", "2", "--num_train_epochs", "3", "--resume_from_checkpoint", "last"])
