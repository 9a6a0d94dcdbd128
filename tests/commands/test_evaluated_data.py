"""The rows to evaluate on are those of the model's training, unless the flags say otherwise."""

import logging
import re
from pathlib import Path

import pytest
import yaml

import hf_gdkd
from hf_gdkd.commands.analysis import parse_analysis
from hf_gdkd.commands.arguments.other_flags import EVALUATION_FLAGS
from hf_gdkd.commands.evaluated_data import has_seen, parse_evaluation, trained_with
from hf_gdkd.errors import InputError

TRAINED = {
    "dataset": "me/photos", "dataset_config": "large", "dataset_revision": "abc", "train_split": "all",
    "validation_rows": 50, "image_column": "picture", "label_column": "kind", "on_bad_image": "skip",
    "teacher": ["runs/one", "runs/two"], "label_map": ["one.yaml", "two.yaml"], "trust_remote_code": True,
    "seed": 7, "train_rows": 10, "learning_rate": 0.1,
}  # fmt: skip


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """What evaluate makes of words, for a student with the settings `trained`."""
    monkeypatch.chdir(tmp_path)

    def parse(*words, **trained):
        Path("student").mkdir(exist_ok=True)
        Path("student/config.json").write_text("{}")
        Path("student/recipe.yaml").write_text(yaml.safe_dump(TRAINED | trained))
        return parse_evaluation(["--model", "student", *words])[1]

    return parse


def test_the_data_are_those_of_the_training(parsed):
    data = parsed()
    kept = ("dataset", "dataset_config", "dataset_revision", "train_split", "validation_rows", "image_column")
    kept += ("label_column", "on_bad_image")
    assert {name: getattr(data, name) for name in kept} == {name: TRAINED[name] for name in kept}
    assert data.label_map is None and data.eval_split is None and not data.trust_remote_code
    assert data.data_options()["train_rows"] is None


def test_what_training_left_at_its_default(parsed):
    parsed()
    Path("student/recipe.yaml").write_text("loss: ce\n")
    assert parse_evaluation(["--model", "student"])[1].dataset == "timm/mini-imagenet"


@pytest.mark.parametrize("flag", ["--eval_split", "--split"])
def test_flags_come_before_the_settings(parsed, flag):
    data = parsed(flag, "test", "--image_column", "other", "--label_map", "mine.yaml", "--teacher", "runs/two")
    assert (data.eval_split, data.validation_rows, data.image_column) == ("test", None, "other")
    assert data.label_map == "mine.yaml" and data.label_column == "kind"
    assert parsed("--validation_rows", "9", validation_rows=None, eval_split="test").eval_split is None


def test_another_data_set_has_other_settings(parsed):
    data = parsed("--dataset", "you/photos", "--teacher", "runs/two")
    assert data.data_options() | {"revision": None} == data.data_options()
    assert (data.label_column, data.validation_rows, data.label_map) == (None, None, None)


def test_a_folder_may_be_elsewhere(parsed):
    Path("new/photos").mkdir(parents=True)
    assert parsed("--dataset", "new/photos", dataset="/home/me/photos").validation_rows == 50
    assert parsed("--dataset", "new/photos").validation_rows == 50


def test_the_label_map_is_that_of_the_teacher(parsed):
    assert parsed("--teacher", "runs/two").label_map == "two.yaml"
    assert parsed("--teacher", "runs/three").label_map is None


@pytest.mark.parametrize("words, trained, says", [
    (["--validation_rows", "9", "--split", "test"], {}, "validation_rows and eval_split are alternatives"),
    (["--label_free"], {}, "without labels only the agreement with a teacher can be measured: use --teacher"),
    ([], {"label_free": True}, "without labels only the agreement"),
    (["--batch_size", "0"], {}, "batch_size is 0: use a number of at least 1"),
    (["--teacher_revision", "main"], {}, "teacher_revision is of no model: use --teacher"),
    ([], {"dataset": ["a", "--trust_remote_code"]}, "has several values as dataset: use --dataset"),
    ([], {"validation_rows": "many"}, "invalid int value: 'many'"),
    (["--label_free", "perhaps"], {}, "invalid _truth value|invalid"),
])  # fmt: skip
def test_what_does_not_go_together_is_said(parsed, words, trained, says):
    with pytest.raises(InputError, match=says):
        parsed(*words, **trained)


@pytest.mark.parametrize("text", [None, "- a list\n", "a: [\n"])
def test_a_model_without_settings_needs_the_data_set(tmp_path, text, caplog):
    (tmp_path / "config.json").write_text("{}")
    if text is not None:
        (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=r"has no recipe.yaml that names its data set: use --dataset\."):
        parse_evaluation(["--model", str(tmp_path)])
    options, data = parse_evaluation(["--model", str(tmp_path), "--dataset", "digits"])
    assert data.dataset == "digits" and options.batch_size == 64


@pytest.mark.parametrize("command", [parse_evaluation, parse_analysis])
def test_a_model_that_is_not_there_is_said(command, caplog):
    """One sentence, that does not begin with settings of a model that does not exist."""
    role = "model" if command is parse_evaluation else "teacher"
    with pytest.raises(
        InputError, match=rf"^{role} runs/nothing is not known: there is no folder of that name, and .*"
    ):
        command([f"--{role}", "runs/nothing", *(["--output_dir", "report"] if role == "teacher" else [])])
    assert not caplog.messages


@pytest.mark.parametrize("words, seen", [
    ([], False), (["--split", "test"], False), (["--split", "all"], True), (["--validation_rows", "51"], True),
    (["--validation_rows", "9", "--train_split", "other"], False), (["--dataset", "x/y", "--split", "all"], False),
])  # fmt: skip
def test_rows_that_a_model_was_trained_on(parsed, words, seen):
    assert has_seen(TRAINED, parsed(*words)) is seen
    assert not has_seen(None, parsed(*words))


def test_a_model_on_the_hub_that_is_not_in_the_cache(caplog):
    with caplog.at_level(logging.WARNING):
        assert trained_with("me/nothing", None) is None
    assert "The settings that me/nothing was trained with (recipe.yaml) are not known" in caplog.text


def test_every_flag_in_an_error_of_what_evaluate_uses_is_one_that_it_has():
    package, found = Path(hf_gdkd.__file__).parent, set()
    others = {
        "streaming",
        "shuffle_buffer",
        "teacher_dtype",
        "shard_teacher",
        "allow_weak_teacher",
        "teacher_cache",
    }  # evaluate does none of it
    others |= {"loss", "student", "student_init"}  # of the command that trains a model, which is named in full
    for path in [*package.glob("data/*.py"), *package.glob("models/*.py"), package / "evaluation/measurement.py"]:
        found |= set(re.findall(r"--([a-z_]{3,})\b", path.read_text()))
    assert found - others <= {*EVALUATION_FLAGS, "teacher"}
