"""The folder of a run: what it holds is never lost to another run, through whatever door that comes."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_training import Plain, StopAt, config, distil, make, make_data, weights
from transformers.trainer_utils import HPSearchBackend

from hf_gdkd import GDKDTrainer
from hf_gdkd.errors import InputError
from hf_gdkd.training.checkpoints import write_contents
from hf_gdkd.training.run_files import write_run_settings
from hf_gdkd.training.run_folder import LOCK, checkpoint_to_resume, in_use, make_way

SAVES = {"save_strategy": "steps", "save_steps": 1, "loss": "ce"}


def checkpoint(folder, step, state=True, contents=True):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt"):
        (path / name).write_text("a hundred bytes" * step)
    if contents:
        write_contents(path)
    if state:
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return str(path)


def files(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_new_or_empty_folder(tmp_path):
    assert checkpoint_to_resume(tmp_path) is None and checkpoint_to_resume(tmp_path / "absent") is None
    (tmp_path / "notes.txt").write_text("mine")
    assert checkpoint_to_resume(tmp_path) is None


@pytest.mark.parametrize("word", ["last", "true", "True", True])
def test_the_last_checkpoint(tmp_path, word):
    checkpoint(tmp_path, 9)
    last = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, state=False)
    assert checkpoint_to_resume(tmp_path, word) == last


def test_a_named_checkpoint(tmp_path):
    """Of the same folder, where nothing complete comes after it or it may go; of another, where there is no run."""
    first = checkpoint(tmp_path, 9)
    assert checkpoint_to_resume(tmp_path, first) == first == checkpoint_to_resume(tmp_path / "elsewhere", first)
    checkpoint(tmp_path, 11, state=False)
    assert checkpoint_to_resume(tmp_path, first) == first
    checkpoint(tmp_path, 10)
    with pytest.raises(InputError, match=r"checkpoint-9 would replace .*checkpoint-10: .*--overwrite"):
        checkpoint_to_resume(tmp_path, first)
    assert checkpoint_to_resume(tmp_path, first, overwrite=True) == first
    checkpoint(tmp_path / "other", 3)
    with pytest.raises(InputError, match="already holds a run"):
        checkpoint_to_resume(tmp_path / "other", first)


RUNS = {
    "checkpoint": lambda folder: checkpoint(folder, 9),
    "incomplete": lambda folder: checkpoint(folder, 9, state=False),
    "weights alone": lambda folder: checkpoint(folder, 9, contents=False),
    "metrics": lambda folder: (folder / "metrics.json").write_text("{}"),
    "model": lambda folder: (folder / "model.safetensors").write_text("weights"),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_folder_that_holds_a_run(tmp_path, kind):
    RUNS[kind](tmp_path)
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"already holds a run.*--resume_from_checkpoint last.*--overwrite"):
        checkpoint_to_resume(tmp_path)
    assert checkpoint_to_resume(tmp_path, overwrite=True) is None
    assert files(tmp_path) == before  # deleted when training begins
    make_way(tmp_path, None, overwrite=True)
    assert files(tmp_path) == {}


def test_only_what_is_in_the_way_goes(tmp_path):
    for step in (1, 2, 3):
        checkpoint(tmp_path, step, state=step != 3)
    (tmp_path / "metrics.json").write_text("{}")
    make_way(tmp_path, str(tmp_path / "checkpoint-2"))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-2", "metrics.json"}
    make_way(tmp_path, str(tmp_path / "checkpoint-1"), overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "metrics.json"}


def test_a_named_checkpoint_that_is_incomplete(tmp_path):
    torn = checkpoint(tmp_path, 9, state=False)
    for name in (torn, str(tmp_path / "absent")):
        with pytest.raises(InputError, match=r"is not a complete checkpoint: use --resume_from_checkpoint last"):
            checkpoint_to_resume(tmp_path, name)


def test_the_last_of_none_begins(tmp_path):
    """A job that is always started with the same command: before its first checkpoint, too."""
    checkpoint(tmp_path / "torn", 9, state=False)
    write_run_settings(tmp_path / "killed early", {"loss": "kd"})
    for name in ("torn", "killed early", "absent"):
        assert checkpoint_to_resume(tmp_path / name, "last") is None


@pytest.mark.parametrize("kind, said", [("metrics", "a finished run"), ("weights alone", "checkpoint-9, which")])
def test_the_last_of_none_does_not_replace_what_cannot_be_resumed(tmp_path, kind, said):
    RUNS[kind](tmp_path)
    with pytest.raises(InputError, match=rf"holds {said}.* and no checkpoint to resume from.*--overwrite"):
        checkpoint_to_resume(tmp_path, "last")
    assert checkpoint_to_resume(tmp_path, "last", overwrite=True) is None


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file: choose another --output_dir"):
        checkpoint_to_resume(tmp_path / "out")


@pytest.mark.parametrize("only_model", [False, True])
def test_a_run_from_python_leaves_another_alone(tmp_path, only_model):
    """A new trainer, and the same one once more; a flag deletes, and only when all is ready to train."""
    first = distil(tmp_path, num_train_epochs=2, save_only_model=only_model, **SAVES)
    before = files(tmp_path)
    second = GDKDTrainer(make(Plain), None, config(tmp_path, **SAVES), train_dataset=make_data())
    for trainer in (second, first):
        with pytest.raises(InputError, match=r"already holds a run.*train\(overwrite=True\)"):
            trainer.train()
    assert files(tmp_path) == before

    second.create_scheduler = lambda **options: 1 / 0
    with pytest.raises(ZeroDivisionError):
        second.train(overwrite=True)
    assert files(tmp_path) == before
    del second.create_scheduler
    second.train(overwrite=True)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{i}" for i in (1, 2, 3)}


def test_trials_of_a_search_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    trainer = GDKDTrainer(
        None, None, config(tmp_path, **SAVES), train_dataset=make_data(), model_init=lambda: make(Plain)
    )
    trainer.hp_search_backend, trainer.hp_space = HPSearchBackend.OPTUNA, lambda trial: {}
    for number in (0, 1):
        trainer.hp_name = lambda trial: f"run-{trial.number}"
        trainer.train(trial=SimpleNamespace(number=number, params={}))
    assert len(list(tmp_path.glob("run-*/checkpoint-*"))) == 6
    with pytest.raises(InputError, match="run-1 already holds a run"):
        trainer.train(trial=SimpleNamespace(number=1, params={}))


def test_a_later_checkpoint_of_another_run_is_not_written_over(tmp_path):
    """Which can be there only where the file system has no locks."""
    trainer = GDKDTrainer(make(Plain), None, config(tmp_path, **SAVES), train_dataset=make_data())
    trainer.add_callback(StopAt(9))
    trainer._make_way = None
    original = trainer._prepare_for_training

    def prepare(*args, **kwargs):
        prepared = original(*args, **kwargs)
        checkpoint(tmp_path, 2)
        return prepared

    trainer._prepare_for_training = prepare
    with pytest.raises(RuntimeError, match="checkpoint-2 has been written by another run"):
        trainer.train()


def holding(folder, worker=False):
    """A process that holds the folder, and has a DataLoader worker, which outlives it, where that is wanted."""
    told, tell = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with in_use(folder):
                pid = os.fork() if worker else os.getpid()
                if pid:
                    os.write(tell, str(pid).encode())
                signal.pause()
        finally:
            os._exit(1)
    return child, int(os.read(told, 100))


def kill(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_one_live_run_in_a_folder(tmp_path):
    """A run that was killed leaves nothing that refuses the next."""
    child, pid = holding(tmp_path)
    message = rf"another run is training into .*process {pid} on .*: choose another --output_dir, or wait"
    try:
        with pytest.raises(InputError, match=message):
            distil(tmp_path, **SAVES)
        with pytest.raises(InputError, match=message), in_use(tmp_path):
            pass
    finally:
        kill(child)
    assert (tmp_path / LOCK).exists()
    distil(tmp_path, **SAVES)
    assert not (tmp_path / LOCK).exists()


def test_a_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path):
    """The lock is the process's own: what it forks has no part in it."""
    child, worker = holding(tmp_path, worker=True)
    kill(child)
    try:
        with in_use(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_an_empty_folder_goes_again_when_nothing_began(tmp_path):
    with pytest.raises(ZeroDivisionError), in_use(tmp_path / "new"):
        assert (tmp_path / "new" / LOCK).exists()
        with in_use(tmp_path / "new"):  # the trainer in the command
            1 / 0  # noqa: B018
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    """One sentence before anything is trained; the folder of processes takes no files, from root either."""
    with pytest.raises(InputError, match=r"folder /proc/runs cannot be written to \(.*\): choose another --output_dir"):
        distil("/proc/runs", **SAVES)
    trainer = GDKDTrainer(make(Plain), None, config(tmp_path, **SAVES), train_dataset=make_data())
    before = weights(trainer).clone()

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("hf_gdkd.training.run_folder.open", refuse, raising=False)
    with pytest.raises(InputError, match=r"cannot be written to \(Read-only file system\)"):
        trainer.train()
    assert (weights(trainer) == before).all()
