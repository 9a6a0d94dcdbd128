"""The literal main command against a local Hub: real ids, the real architectures in small; and a push."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_content import tiny_datasets, tiny_models
from hub_server import HubServer

ROOT = Path(__file__).parents[2]
COMMAND = "accelerate launch scripts/distill.py --teacher google/vit-base --student deit-tiny --loss gdkd3"
PUSH = "--num_train_epochs 1 --output_dir runs/pushed --push_to_hub --hub_model_id tester/student"


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        tiny_models(server)
        tiny_datasets(server)
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("main")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    return folder


def run(words: list[str], folder: Path, hub: HubServer, home: str, **more: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, **hub.env(home=folder / home), **more}
    done = subprocess.run(words, cwd=folder, env=env, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_the_literal_command(folder, hub):
    done = run(COMMAND.split(), folder, hub, "home")
    assert "google/vit-base -> google/vit-base-patch16-224@" in done.stdout
    student = folder / "runs/deit-tiny-gdkd3"
    metrics = json.loads((student / "metrics.json").read_text())
    assert metrics["top1"] > 0.5
    config = json.loads((student / "config.json").read_text())
    assert len(config["id2label"]) == 100
    assert "base_model: facebook/deit-tiny-patch16-224" in (student / "README.md").read_text()


def test_the_literal_command_without_a_network(folder, hub):
    """From the filled cache: everything the command needs was downloaded by the run before."""
    words = [*COMMAND.split(), "--num_train_epochs", "1", "--output_dir", "runs/offline"]
    seen = len(hub.log)
    run(words, folder, hub, "home", HF_HUB_OFFLINE="1")
    assert (folder / "runs/offline/model.safetensors").is_file() and len(hub.log) == seen


def test_a_push_holds_what_a_user_needs_and_no_token(folder, hub):
    run([*COMMAND.split(), *PUSH.split()], folder, hub, "home")
    files = hub.files("models", "tester/student")
    assert set(files) - {".gitattributes"} == {
        "README.md", "config.json", "metrics.json", "model.safetensors",
        "preprocessor_config.json", "recipe.yaml", "training.png",
    }  # fmt: skip
    assert hub.token.encode() not in hub.everything()
    assert files["README.md"] == (folder / "runs/pushed/README.md").read_bytes()
    code = (
        "from transformers import AutoModelForImageClassification as Model; "
        "print(Model.from_pretrained('tester/student').num_labels)"
    )
    assert run([sys.executable, "-c", code], folder, hub, "empty").stdout.split() == ["100"]
