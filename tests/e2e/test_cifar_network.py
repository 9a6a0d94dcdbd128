"""A recipe of the paper, and so a CIFAR network, through the whole script on the embedded digits."""

import json
import subprocess
import sys
from pathlib import Path

import yaml
from transformers import AutoModelForImageClassification

import hf_gdkd.models.cifar.modeling  # noqa: F401

SCRIPT = Path(__file__).parents[2] / "scripts/distill.py"


def test_a_network_is_trained_by_its_recipe_and_saved(tmp_path):
    """Two steps; the run knows its recipe and that it began at random, and the card how to load the model."""
    words = "--recipe cifar100/resnet8 --student_init pretrained --dataset digits --crop_padding 1 --max_steps 2"
    quick = "--per_device_train_batch_size 4 --use_cpu --eval_strategy no --save_strategy no --disable_tqdm true"
    command = [sys.executable, str(SCRIPT), *words.split(), *quick.split()]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("cifar/resnet8 has no pretrained weights: it starts from random ones.") == 1
    run = tmp_path / "runs/cifar100/resnet8"
    assert json.loads((run / "metrics.json").read_text())["parameters"] == 83892 - 90 * 65  # 10 classes, not 100
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["student_init"] == "random" and recipe["crop_padding"] == 1 and recipe["loss"] == "ce"
    assert recipe["lr_decay_epochs"] == [150, 180, 210] and recipe["decay_all_weights"]
    card = (run / "README.md").read_text()
    assert (
        "import hf_gdkd.models.cifar.modeling  # so that" in card
        and "base_model" not in card
        and "trained from scratch" in card
    )
    model = AutoModelForImageClassification.from_pretrained(run)
    assert model.config.architecture == "resnet8" and model.config.id2label[9] == "9"
