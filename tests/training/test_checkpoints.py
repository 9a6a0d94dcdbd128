"""Which checkpoint a run goes on from."""

import errno
import json
from pathlib import Path

import pytest
from safetensors import SafetensorError

from hf_gdkd import GDKDConfig
from hf_gdkd.errors import InputError, TrainingError
from hf_gdkd.training.checkpoints import check_same_run, checkpoint_to_resume, is_whole, saving, write_contents
from hf_gdkd.training.run_files import read_run_settings, write_run_settings


def checkpoint(folder, step, state=True):
    path = folder / f"checkpoint-{step}"
    (path / "shards").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "shards/0.distcp"):
        (path / name).write_text("a hundred bytes" * step)
    write_contents(path)
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


def test_a_named_checkpoint_that_is_not_whole(tmp_path):
    torn = checkpoint(tmp_path, 9, state=False)
    for name in (torn, str(tmp_path / "absent")):
        with pytest.raises(InputError, match=r"is no whole checkpoint: give --resume_from_checkpoint last"):
            resume(tmp_path, name)


def test_the_last_of_none_begins(tmp_path, capsys):
    """A job that is always started with the same command: before its first checkpoint, too."""
    checkpoint(tmp_path / "torn", 9, state=False)
    write_run_settings(tmp_path / "killed early", {"loss": "kd"})
    for name in ("torn", "killed early", "absent"):
        assert resume(tmp_path / name, "last") is None
        assert capsys.readouterr().out.endswith(f"{name} holds no whole checkpoint: the run begins anew.\n")


def test_the_last_of_none_does_not_replace_a_finished_run(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds a finished run and no checkpoint.*--overwrite"):
        resume(tmp_path, "last")
    assert resume(tmp_path, "last", overwrite=True) is None


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file: choose another --output_dir"):
        resume(tmp_path / "out")


NAMES = ["trainer_state.json", "contents.json", "model.safetensors", "optimizer.pt", "shards/0.distcp"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tear", [Path.unlink, lambda path: path.write_bytes(b""), lambda path: cut(path)])
def test_a_torn_checkpoint_is_passed_over(tmp_path, capsys, name, tear):
    """Whichever file is missing, empty or short."""
    whole, torn = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert is_whole(torn)
    tear(Path(torn, name))
    assert resume(tmp_path, "last") == whole
    assert capsys.readouterr().out.startswith(f"{torn} was not written to its end")


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), SafetensorError("I/O error"), RuntimeError("unexpected pos")]
)
def test_what_cannot_be_written_is_one_sentence(tmp_path, error):
    """What Python, safetensors and torch raise on a full disk."""
    for last, said in [(None, "No checkpoint is whole: make room and begin"), (9, "checkpoint-9 is whole: make room")]:
        whole = last and checkpoint(tmp_path, last)
        with pytest.raises(TrainingError) as caught, saving(str(tmp_path / "checkpoint-12"), str(tmp_path)):
            raise error
        assert str(caught.value).startswith(f"{tmp_path / 'checkpoint-12'} could not be written, with ")
        assert said in str(caught.value) and str(whole or "") in str(caught.value)
        assert "\n" not in str(caught.value) and caught.value.__cause__ is error


def test_a_recipe_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_run_settings(tmp_path, {"loss": "kd"})
    monkeypatch.setattr(Path, "replace", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_run_settings(tmp_path, {"loss": "gdkd"})
    assert read_run_settings(tmp_path) == {"loss": "kd"}


@pytest.mark.parametrize(
    "name, value", [("loss", "kd"), ("teacher_revision", "b" * 40), ("dataset", "other"), ("k", 3)]
)
def test_a_resumed_run_keeps_its_settings(name, value):
    recipe = {"loss": "gdkd", "teacher": "big", "teacher_revision": "a" * 40, "dataset": "digits"}
    check_same_run(recipe | {"num_train_epochs": 20}, recipe)
    with pytest.raises(InputError, match=f"this run began with {name} .*give --{name} as it was"):
        check_same_run(recipe | {name: value}, recipe)
