"""What a student starts from, by the command: recorded, described, and left alone when the run resumes."""

from pathlib import Path

import pytest
import torch
import yaml
from refusals import refusal
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from hf_gdkd.commands import student as students
from hf_gdkd.commands.arguments.parsing import parse
from hf_gdkd.scripts import distill

DEMO = Path(__file__).parents[2] / "scripts/demo"
DIGITS = "9081726354"  # the teacher's order


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A vision transformer of three blocks that knows the digits in another order, and nothing of them."""
    folder = tmp_path_factory.mktemp("teacher")
    config = AutoConfig.from_pretrained(DEMO / "vit", num_labels=10)
    config.id2label = dict(enumerate(DIGITS))
    torch.manual_seed(0)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    AutoImageProcessor.from_pretrained(DEMO / "vit").save_pretrained(folder)
    return folder


def test_a_student_starts_from_the_teacher(tmp_path, teacher, monkeypatch, caplog):
    """With a learning rate of 0 it stays the teacher; two blocks of three, from a settings file; then resumed."""
    words = [
        *("--dataset", "digits", "--teacher", str(teacher), "--allow_weak_teacher", "--student", str(DEMO / "vit"))
    ]
    words += ["--student_init", "teacher", "--max_steps", "1", "--learning_rate", "0", "--eval_strategy", "no"]
    words += ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--save_strategy", "steps"]
    words += ["--train_rows", "64", "--validation_rows", "40"]
    whole = distill.main([*words, "--save_strategy", "no", "--output_dir", str(tmp_path / "whole")])
    assert whole["agreement"] == 1.0  # the rows of its head are in the student's order
    card = (tmp_path / "whole/README.md").read_text()
    assert f"started from weights of its teacher `{teacher.name}`" in card

    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({"student_config": {"num_hidden_layers": 2}}))
    words = [
        "--config",
        str(settings),
        *words,
        "--output_dir",
        str(tmp_path / "two"),
        "--resume_from_checkpoint",
        "last",
    ]
    distill.main(words)
    assert "blocks 0, 2 of 3 of vit.layers, with 10 of 10 classes of its head" in caplog.text
    own, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "two", teacher))
    last = "vit.encoder.layer.{}.output.dense.weight"
    assert torch.equal(own[last.format(1)], theirs[last.format(2)])
    recorded = yaml.safe_load((tmp_path / "two/recipe.yaml").read_text())
    assert recorded["student_init"] == "teacher" and recorded["student_config"] == ["num_hidden_layers=2"]

    monkeypatch.setattr(students, "load_trained", None)  # a resumed run has the weights of its checkpoint
    distill.main([*words, "--max_steps", "2"])
    refusal(lambda: distill.main([*words, "--student_config", "num_hidden_layers=3"]), "began with student_config")


def test_what_is_refused(teacher):
    words = ["--student", str(DEMO / "vit"), "--use_cpu", "--student_init"]
    refusal(lambda: parse([*words, "teacher", "--loss", "ce"]), "student_init is teacher, and there is none")
    refusal(lambda: parse([*words, "teachr", "--loss", "ce"]), "pretrained, random or teacher")
    script, _ = parse([*words, "random", "--loss", "ce", "--student_config", "num_hidden_layers"])
    refusal(lambda: students.student_config(script), "student_config has 'num_hidden_layers'")
