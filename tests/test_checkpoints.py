"""Which checkpoint a run goes on from."""

import json
from pathlib import Path

import pytest

from hf_gdkd import GDKDConfig
from hf_gdkd.checkpoints import check_same_run, checkpoint_to_resume
from hf_gdkd.errors import InputError


def checkpoint(folder, step, state=True):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if state:
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return str(path)


def resume(folder, resume_from=None, overwrite=False):
    return checkpoint_to_resume(GDKDConfig(output_dir=str(folder), resume_from_checkpoint=resume_from), overwrite)


def test_a_new_or_empty_folder(tmp_path):
    assert resume(tmp_path) is None and resume(tmp_path / "absent") is None
    (tmp_path / "notes.txt").write_text("mine")
    assert resume(tmp_path) is None


@pytest.mark.parametrize("word", ["last", "true", "True"])
def test_the_last_checkpoint(tmp_path, word):
    checkpoint(tmp_path, 9)
    last = checkpoint(tmp_path, 10)
    assert resume(tmp_path, word) == last


def test_a_named_checkpoint(tmp_path):
    first, _ = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert resume(tmp_path, first) == first == resume(tmp_path / "elsewhere", first)


@pytest.mark.parametrize("kind", ["checkpoint", "metrics"])
def test_a_folder_that_holds_a_run(tmp_path, kind):
    checkpoint(tmp_path, 9) if kind == "checkpoint" else (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match=r"already holds a run.*--resume_from_checkpoint last.*--overwrite"):
        resume(tmp_path)
    assert resume(tmp_path, overwrite=True) is None
    assert not list(tmp_path.glob("checkpoint-*"))


def test_nothing_to_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken = checkpoint(tmp_path / "broken", 1, state=False)
    (tmp_path / "last").mkdir()  # no checkpoint, for all its name
    (tmp_path / "empty").mkdir()
    for folder, word in [("empty", "last"), ("absent", "last"), ("empty", "absent"), ("empty", broken)]:
        with pytest.raises(InputError, match="there is no checkpoint to resume from"):
            resume(tmp_path / folder, word)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file: choose another --output_dir"):
        resume(tmp_path / "out")


@pytest.mark.parametrize("torn", ["", '{"global_step": 2'])
def test_a_torn_checkpoint_is_passed_over(tmp_path, capsys, torn):
    whole = checkpoint(tmp_path, 9)
    Path(checkpoint(tmp_path, 10), "trainer_state.json").write_text(torn)
    checkpoint(tmp_path, 11, state=False)
    assert resume(tmp_path, "last") == whole
    assert [line.split()[0].rpartition("-")[2] for line in capsys.readouterr().out.splitlines()] == ["11", "10"]


@pytest.mark.parametrize(
    "name, value", [("loss", "kd"), ("teacher_revision", "b" * 40), ("dataset", "other"), ("k", 3)]
)
def test_a_resumed_run_keeps_its_settings(name, value):
    recipe = {"loss": "gdkd", "teacher": "big", "teacher_revision": "a" * 40, "dataset": "digits"}
    check_same_run(recipe | {"num_train_epochs": 20}, recipe)
    with pytest.raises(InputError, match=f"this run began with {name} .*give --{name} as it was"):
        check_same_run(recipe | {name: value}, recipe)
