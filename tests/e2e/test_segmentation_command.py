"""The literal command for segmentation against a local Hub: real ids, real architectures in small; a push; its use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer
from hub_streets import DATASET, STUDENT, TEACHER, street_dataset, street_models

ROOT = Path(__file__).parents[2]
FLAGS = f"--task semantic-segmentation --teacher {TEACHER} --student {STUDENT} --dataset {DATASET} --loss gdkd"
PUSH = "--max_steps 1 --crop_size 32 --output_dir runs/pushed --push_to_hub --hub_model_id tester/streets"
USE = """
import json
from PIL import Image
from transformers import pipeline
found = pipeline("image-segmentation", "tester/streets")(Image.new("RGB", (90, 70), (30, 90, 160)))
print(json.dumps([[each["label"], each["mask"].size] for each in found]))
"""


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        street_models(server)
        street_dataset(server)
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("streets")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    return folder


def run(words: list[str], folder: Path, hub: HubServer, home: str = "home") -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, **hub.env(home=folder / home)}
    done = subprocess.run(words, cwd=folder, env=env, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_literal_command(folder, hub):
    said = run(["hf-gdkd", "distill", *FLAGS.split()], folder, hub)
    assert f"{TEACHER} -> {TEACHER}@" in said and f"{TEACHER}: mean IoU " in said
    assert "Cityscapes" in said and "26" in said  # the mapping of raw ids is printed
    student = folder / "runs/mit-b0-gdkd"
    metrics = json.loads((student / "metrics.json").read_text())
    assert 0 < metrics["mean_iou"] <= 1 and metrics["agreement"] > 0 and metrics["teachers"][TEACHER]["mean_iou"] > 0.1
    config = json.loads((student / "config.json").read_text())
    assert config["architectures"] == ["SegformerForSemanticSegmentation"] and config["id2label"]["13"] == "car"
    card = (student / "README.md").read_text()
    assert f"base_model: {STUDENT}" in card and "pipeline_tag: image-segmentation" in card
    assert (student / "segmentation.png").stat().st_size > 10_000


def test_a_push_by_the_script_is_what_a_pipeline_uses(folder, hub):
    run(["accelerate", "launch", "scripts/distill.py", *FLAGS.split(), *PUSH.split()], folder, hub)
    files = hub.files("models", "tester/streets")
    assert set(files) - {".gitattributes"} == {
        "README.md", "config.json", "metrics.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml",
        "segmentation.png", "training.png",
    }  # fmt: skip
    assert hub.token.encode() not in hub.everything()
    found = json.loads(run([sys.executable, "-c", USE], folder, hub, "empty").splitlines()[0])
    assert found and all(size == [90, 70] for _, size in found)
