"""Pushes to a local Hub that fails: retried, then one sentence, and nothing lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer

ROOT = Path(__file__).parents[1]
CARD = "---\nlibrary_name: transformers\n---\n# student\n"
STUDENT = {"model.safetensors": "weights", "config.json": "{}", "README.md": CARD, "metrics.json": "{}"}
MODES = {"refuse": "refuse", "cut": "cut", "401": 401, "403": 403, "429": 429, "500": 500}


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    for name, text in (STUDENT | {"training_args.bin": "a pickle", "checkpoint-1/model.safetensors": "older"}).items():
        (tmp_path / "student" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "student" / name).write_text(text)
    return tmp_path / "student"


def push(folder, hub, waits=(), **env):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import hf_gdkd.hub as hub; from scripts import push;"
        f"from hf_gdkd.cli import run; hub.push.__kwdefaults__['waits'] = {waits!r};"
        f"run(lambda: push.main([{str(folder)!r}, '--hub_model_id', 'tester/student']))"
    )
    env = {**os.environ, **hub.env(home=folder.parent / "home"), **env}
    return subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True, timeout=120)


def test_only_what_a_user_needs(folder, hub):
    done = push(folder, hub)
    assert done.returncode == 0, done.stderr
    assert set(hub.files("models", "tester/student")) - {".gitattributes"} == set(STUDENT)


@pytest.mark.parametrize("mode", MODES)
def test_a_failed_push_loses_nothing(folder, hub, mode):
    hub.fail(MODES[mode], path="/commit/|/repos/create", method="POST")
    done = push(folder, hub)
    assert done.returncode == 3, done.stderr
    *_, said = done.stderr.strip().splitlines()
    assert said.startswith(f"error: the student is finished and whole in {folder}") and "Traceback" not in done.stderr
    assert f"python scripts/push.py {folder} --hub_model_id tester/student" in said
    assert {path.name for path in folder.iterdir() if path.is_file()} == {*STUDENT, "training_args.bin"}
    hub.heal()
    assert push(folder, hub).returncode == 0


@pytest.mark.parametrize("mode", ["refuse", "429", "500"])
def test_what_passes_is_tried_again(folder, hub, mode):
    hub.fail(MODES[mode], path="/commit/", times=2)
    done = push(folder, hub, waits=(0.1, 0.1, 0.1))
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in hub.files("models", "tester/student")


def test_an_unfinished_run_is_refused(tmp_path, hub):
    (tmp_path / "student").mkdir()
    done = push(tmp_path / "student", hub)
    assert done.returncode == 2 and "has no config.json" in done.stderr
