"""Flags and recipes in, arguments out; one sentence and exit code 2 for everything else."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hf_gdkd import GDKDConfig
from hf_gdkd.commands.arguments.distill_flags import TRAINING_DEFAULTS
from hf_gdkd.commands.arguments.parsing import parse
from hf_gdkd.commands.arguments.settings_file import FLAGS_ONLY, command_line, run_settings
from hf_gdkd.commands.running import run
from hf_gdkd.errors import InputError

ROOT = Path(__file__).parents[2]
MODELS = ["--teacher", "big", "--student", "small"]
SECRET = "hf_secretsecretsecret"


def write(path, recipe):
    path.write_text(json.dumps(recipe) if path.suffix == ".json" else yaml.safe_dump(recipe), encoding="utf-8")
    return str(path)


def same(first, second):
    """Both pairs of arguments, but for where the run is."""
    for a, b in zip(first, second, strict=True):
        a, b = (x.to_dict() if isinstance(x, GDKDConfig) else dict(vars(x)) for x in (a, b))
        for values in (a, b):
            values.pop("output_dir", None)
        if a != b:
            return False
    return True


# Parsing


def test_flags():
    script, args = parse([*MODELS, "--loss", "gdkd3", "--k", "4", "--temperature=2", "--dataset", "digits", "--flip",
                          "false", "--learning-rate", "1e-3", "--bf16", "false", "--overwrite"])  # fmt: skip
    assert (script.teacher, script.student, script.dataset) == (["big"], "small", "digits")
    assert script.flip is False and script.overwrite is True and script.crop_scale is None
    assert (args.loss, args.k, args.temperature, args.learning_rate) == ("gdkd3", 4, 2.0, 1e-3)


def test_lists():
    _, args = parse([*MODELS, "--loss", "mlkd", "--temperatures", "1", "2.5", "--mask_samples", "true"])
    assert args.temperatures == [1.0, 2.5] and args.mask_samples is True


def test_defaults_of_the_script():
    _, args = parse(MODELS)
    assert {name: getattr(args, name) for name in TRAINING_DEFAULTS} == TRAINING_DEFAULTS
    assert args.loss == "gdkd"


def test_the_command_line_is_the_default(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["distill.py", *MODELS, "--k", "3"])
    assert parse()[1].k == 3


@pytest.mark.parametrize("name", ["recipe.yaml", "recipe.yml", "recipe.json"])
def test_recipe(tmp_path, name):
    recipe = {"student": "small", "teacher": "big", "loss": "mlkd", "temperatures": [1.0, 3.0], "learning_rate": 0.01,
              "flip": False, "bf16": False, "lr_scheduler_kwargs": {"num_cycles": 2}, "save_total_limit": None,
              }  # fmt: skip
    script, args = parse(["--config", write(tmp_path / name, recipe)])
    assert (script.student, script.teacher, script.flip) == ("small", ["big"], False)
    assert (args.loss, args.temperatures, args.learning_rate) == ("mlkd", [1.0, 3.0], 0.01)
    assert args.lr_scheduler_kwargs == {"num_cycles": 2} and args.save_total_limit is None


def test_numbers_that_yaml_takes_for_words(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("student: small\nteacher: big\nlearning_rate: 1e-3\nadam_epsilon: +1e-9\n")
    args = parse([f"--config={path}"])[1]
    assert (args.learning_rate, args.adam_epsilon) == (1e-3, 1e-9)


def test_flags_override_the_recipe(tmp_path):
    recipe = write(
        tmp_path / "r.yaml", {"student": "a", "teacher": "b", "k": 3, "temperature": 2.0, "label_free": True}
    )
    for argv in (["--config", recipe, "--k", "4"], ["--k", "4", "--config", recipe]):
        script, args = parse([*argv, "--student", "c", "--label_free", "false"])
        assert (script.student, script.teacher, args.k, args.temperature) == ("c", ["b"], 4, 2.0)
        assert script.label_free is False


@pytest.mark.parametrize("argv, said", [
    (["--loss", "gdkt"], "did you mean 'gdkd'?"),
    (["--loss", "kd", "--k", "2"], "takes no option 'k'"),
    (["--k", "many"], "k is many: use a whole number of at least 1, or auto"),
    (["--k"], "argument --k: expected one argument"),
    (["--temperature", "0"], "temperature is 0.0"),
    (["--ce_weight", "-1"], "ce_weight is -1.0"),
    (["--teecher", "x"], "unknown argument --teecher: did you mean --teacher?"),
    (["--temp", "3"], "unknown argument --temp"),
    (["--qqqq=3"], "unknown argument --qqqq=3; --help all lists the flags."),
    (["word"], "unknown argument word"),
    (["--lr_scheduler_type", "cosin"], "invalid choice: 'cosin'"),
    (["--flip", "perhaps"], "argument --flip"),
    (["--student_init", "half"], "student_init is 'half': choose pretrained, random or teacher"),
    (["--crop_scale", "0"], "crop_scale is 0.0"),
    (["--crop_scale", "1.5"], "crop_scale is 1.5"),
    (["--loss", "ce"], "loss ce takes no teacher"),
    (["--load_best_model_at_end", "--eval_strategy", "no"], "load_best_model_at_end"),
    (["--config"], "argument --config: expected one argument"),
])  # fmt: skip
def test_bad_flags(argv, said):
    with pytest.raises(InputError) as caught:
        parse([*MODELS, *argv])
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("argv, said", [
    ([], "no student: use --student"),
    (["--student", "small"], "loss gdkd needs a teacher: use --teacher"),
])  # fmt: skip
def test_missing_models(argv, said):
    with pytest.raises(InputError, match=said):
        parse(argv)


@pytest.mark.parametrize("name, content, said", [
    ("absent.yaml", None, "cannot be read"),
    ("list.yaml", b"- a\n- b\n", "is not a mapping"),
    ("empty.yaml", b"", "is not a mapping"),
    ("broken.yaml", b"k: [1\n", "cannot be read"),
    ("broken.json", b'{"k": ', "cannot be read"),
    ("binary.yaml", b"\xff\xfe\x00\x80", "cannot be read"),
    ("object.yaml", b"k: !!python/object/apply:os.system [exit]\n", "cannot be read"),
    ("typo.yaml", b"temprature: 3\n", "unknown key 'temprature': did you mean temperature?"),
    ("typo.json", b'{"teecher": "x"}', "unknown key 'teecher': did you mean teacher?"),
    ("far.yaml", b"qqqq: 3\n", "unknown key 'qqqq'"),
    ("number.yaml", b"3: 4\n", "unknown key 3"),
    ("inner.yaml", b"_n_gpu: 2\n", "unknown key '_n_gpu'"),
    ("word.yaml", b"k: many\n", "k is many: use a whole number of at least 1, or auto"),
    ("half.yaml", b"k: 2.5\n", "k is 2.5: use a whole number of at least 1, or auto"),
    ("many.yaml", b"k: [1, 2]\n", "k takes one value, and has 2"),
    ("range.yaml", b"temperature: -1\n", "temperature is -1.0"),
    ("smuggled.yaml", b"label_names: [a, --trust_remote_code]\n", "has a flag among the values of label_names"),
    ("words.yaml", b"loss: mlkd\ntemperatures: [1, x]\n", "argument --temperatures: invalid float value: 'x'"),
    ("maybe.yaml", b"flip: maybe\n", "argument --flip"),
    ("option.yaml", b"loss: kd\nk: 2\n", "takes no option 'k'"),
])  # fmt: skip
def test_bad_recipes(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        parse([*MODELS, "--config", str(path)])
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_an_error_about_a_flag_does_not_blame_the_file(tmp_path):
    recipe = write(tmp_path / "recipe.yaml", {"temperature": 2.0, "k": 3})
    with pytest.raises(InputError, match=r"^temperature is -1\.0"):
        parse([*MODELS, "--config", recipe, "--temperature", "-1"])


@pytest.mark.parametrize("name", sorted(FLAGS_ONLY))
def test_what_only_a_flag_may_set(tmp_path, name):
    """A downloaded recipe.yaml switches on nothing dangerous, and a run does not record it."""
    path = write(tmp_path / "recipe.yaml", {"student": "small", name: "true"})
    with pytest.raises(InputError, match=f"recipe.yaml sets {name}, which only a flag may: .* use --{name} "):
        parse(["--config", path])


def test_numbers_that_yaml_takes_for_words_inside_a_mapping(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("lr_scheduler_kwargs: {num_cycles: 5e-1, name: 1e}\nstudent_revision: 12e4567\n")
    script, args = parse([*MODELS, "--config", str(path)])
    assert args.lr_scheduler_kwargs == {"num_cycles": 0.5, "name": "1e"} and script.student_revision == "12e4567"


def test_paths_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "recipe.yaml", {"student": "~/small", "teacher": ["~/big", "~other"], "dataset": "a~/b"})
    script, args = parse(["--config=~/recipe.yaml", "--output_dir=~/runs"])
    assert (script.student, script.teacher) == (f"{tmp_path}/small", [f"{tmp_path}/big", "~other"])
    assert (script.dataset, args.output_dir) == ("a~/b", f"{tmp_path}/runs")


@pytest.mark.parametrize("student", ["runs/foo", "runs/foo/", "./foo//"])
def test_the_output_folder_is_named_after_the_student(student):
    assert parse(["--teacher", "big", "--student", student])[1].output_dir == "runs/foo-gdkd"


def test_recipe_that_is_a_folder(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        parse([*MODELS, "--config", str(tmp_path)])


# The recipe of a run


@pytest.mark.parametrize("flags", [
    [],
    ["--num_train_epochs", "3", "--learning_rate", "5e-5", "--per_device_train_batch_size", "8"],  # the library's own
    ["--loss", "mlkd", "--temperatures", "1", "2", "--mask_classes", "true"],
    ["--loss", "dkd", "--partition", "top1", "--beta", "2", "--ce_weight", "0", "--kd_warmup_epochs", "0.5"],
    ["--dataset", "digits", "--flip", "false", "--crop_scale", "1", "--student_init", "random"],
    ["--lr_scheduler_type", "constant_with_warmup", "--eval_strategy", "no", "--save_strategy", "no"],
    ["--optim", "sgd", "--seed", "7", "--lr_scheduler_kwargs", '{"a": 1}', "--report_to", "none"],
    ["--teacher_revision", "abc", "--teacher_dtype", "bfloat16", "--gradient_accumulation_steps", "4"],
    ["--accelerator_config", '{"split_batches": true}', "--label_names", "a", "b", "--max_grad_norm", "0"],
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["recipe.yaml", "recipe.json"])
def test_recipe_repeats_the_run(tmp_path, name, flags):
    first = parse([*MODELS, *flags, "--output_dir", str(tmp_path / "a")])
    recipe = run_settings(*first)
    assert recipe["student"] == "small" and "output_dir" not in recipe
    second = parse(["--config", write(tmp_path / name, recipe), "--output_dir", str(tmp_path / "b")])
    assert same(first, second)
    assert run_settings(*second) == recipe


def test_recipe_holds_no_secret_and_no_place(tmp_path):
    flags = ["--hub_token", SECRET, "--push_to_hub", "--hub_model_id", "me/student", "--overwrite"]
    flags += ["--trust_remote_code", "--report_to", "tensorboard"]
    recipe = run_settings(*parse([*MODELS, *flags, "--output_dir", str(tmp_path / "here")]))
    assert not FLAGS_ONLY & recipe.keys()
    assert SECRET not in str(recipe) and "here" not in str(recipe) and "TOKEN" not in str(recipe)


# Without labels


def test_label_free_has_no_cross_entropy():
    script, args = parse([*MODELS, "--label_free", "--output_dir", "x"])
    assert script.label_free and args.ce_weight == 0 and args.kd_weight == 1


@pytest.mark.parametrize("words, said", [
    (["--student", "small", "--loss", "ce"], "--label_free needs a teacher"),
    ([*MODELS, "--label_map", "map.yaml"], "leave --label_map out"),
    ([*MODELS, "--ce_weight", "0.5"], "--label_free has no cross-entropy, but ce_weight is 0.5"),
    ([*MODELS, "--class_k", "1", "2"], "--class_k needs labels, and --label_free has none"),
    ([*MODELS, "--loss", "dkd"], "dkd needs labels, and --label_free has none: use --partition top1, or --loss gdkd"),
    ([*MODELS, "--loss", "kd+nkd"], "nkd needs labels, and --label_free has none: use --loss gdkd"),
    ([*MODELS, "--loss", "rld"], "rld needs labels, and --label_free has none: use --loss gdkd"),
    ([*MODELS, "--loss", "kd", "--gradient_scaling", "2", "--ce_weight", "0"], "--gradient_scaling needs labels"),
])  # fmt: skip
def test_label_free_refuses_what_needs_labels(words, said):
    with pytest.raises(InputError, match=said):
        parse([*words, "--label_free", "--output_dir", "x"])


@pytest.mark.parametrize("words, said", [
    (["--train_rows", "0"], "train_rows is 0: use a number of at least 1"),
    (["--validation_rows", "-3"], "validation_rows is -3"),
    (["--validation_rows", "5", "--eval_split", "test"], "validation_rows and eval_split are two ways"),
    (["--train_rows", "5", "--streaming", "--max_steps", "9"], "train_rows is 5: cannot be combined with --streaming"),
])  # fmt: skip
def test_rows_that_cannot_be_drawn(words, said):
    with pytest.raises(InputError, match=said):
        parse([*MODELS, *words, "--output_dir", "x"])


def test_the_command_line_holds_no_token():
    words = ["--student", "a b", "--hub_token", SECRET, f"--hub_token={SECRET}", "--overwrite"]
    assert command_line(words) == "hf-gdkd distill --student 'a b' --overwrite"


# One sentence


def test_run_says_one_sentence(capsys):
    with pytest.raises(SystemExit) as caught:
        run(lambda: parse([*MODELS, "--k", "many"]))
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == "" and err == "error: k is many: use a whole number of at least 1, or auto.\n"


def test_a_full_disk_is_one_sentence(tmp_path, capsys):
    def main():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == 4
    assert capsys.readouterr().err == (
        "error: [Errno 28] No space left on device. Free some space, and run the command again.\n"
    )
    with pytest.raises(FileNotFoundError):
        run(lambda: (tmp_path / "absent").read_text())


def test_run_lets_everything_else_through(capsys):
    assert run(lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        run(lambda: parse(["--help"]))
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    for flag in ("--student", "--teacher", "--loss", "--kd_warmup_epochs", "--learning_rate", "--config"):
        assert flag in text


def test_the_script_says_one_sentence():
    command = [sys.executable, str(ROOT / "scripts" / "distill.py"), *MODELS, "--loss", "gdkt"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == ""
    assert len(lines) == 1 and lines[0].startswith("error: there is no loss 'gdkt': did you mean 'gdkd'?")


@pytest.mark.parametrize("words, said", [
    (["--batch_eval_metrics"], "batch_eval_metrics is True, and accuracy needs all predictions at once: leave it out"),
    (["--prediction_loss_only"], "prediction_loss_only is True, and"),
    (["--eval_do_concat_batches", "false"], "eval_do_concat_batches is False, and"),
    (["--debug", "tpu_metrics_debug"], "debug is tpu_metrics_debug, which needs a TPU"),
    (["--metric_for_best_model", "accuracy"], "metric_for_best_model is accuracy: choose one of loss, top1, top5, nll"),
    (["--label_free", "--metric_for_best_model", "top1"], "is top1: choose one of loss, agreement"),
])  # fmt: skip
def test_evaluation_that_cannot_be_measured(words, said):
    with pytest.raises(InputError) as caught:
        parse([*MODELS, *words, "--output_dir", "x"])
    assert said in str(caught.value)


@pytest.mark.parametrize("metric, greater", [("nll", False), ("eval_ece", False), ("top1", True), ("loss", False)])
def test_the_best_is_the_lowest_where_less_is_better(metric, greater):
    assert parse([*MODELS, "--metric_for_best_model", metric])[1].greater_is_better is greater
