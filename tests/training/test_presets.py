"""The presets: their numbers against a copy of what was published, and how they follow data set, batch and student."""

import re
from pathlib import Path

import pytest
from refusals import refusal
from tiny_cnns import CNN, vit
from torch import nn

from hf_gdkd import GDKDConfig
from hf_gdkd.training import preset_settings
from hf_gdkd.training.preset_table import PRESETS, Rate
from hf_gdkd.training.presets import IMAGENET

FACTS = Path(__file__).with_name("presets.md").read_text(encoding="utf-8")
ROWS = {row.split("|")[1].strip(): row for row in FACTS.splitlines()[2:] if row.startswith("|")}
NUMBERS = {  # what stands in the table -> the setting, on ImageNet at the published batch
    r"([\d,]+)(?:, \d+ or [\d,]+)? epochs": "num_train_epochs",
    r"lr ([\de.-]+)": "learning_rate",
    r"weight decay ([\de.-]+)": "weight_decay",
    r"mixup ([\d.]+)": "mixup_alpha",
    r"CutMix ([\d.]+)": "cutmix_alpha",
    r"label smoothing ([\d.]+)": "label_smoothing_factor",
    r"(\d) augmentation repeats": "repeated_augmentation",
    r"T (\d)": "temperature",
    r"weight (\d) beside cross-entropy": "kd_weight",
    r"beside cross-entropy (\d)": "ce_weight",
}
OPTIMIZERS = {"AdamW": ("optim", "adamw_torch_fused"), "LAMB": ("timm_optimizer", "lamb"), "SGD": ("optim", "sgd")}
KINDS = {"CNN": CNN, "transformer": vit}


def published(name, build=CNN, **options):
    """On ImageNet, at the batch of the learning rate."""
    own = PRESETS[name].cnn if build is CNN else PRESETS[name].transformer
    rate = {**PRESETS[name].settings, **own}["learning_rate"]
    options = {"images": IMAGENET, "batch_size": rate.batch, **options}
    return preset_settings(name, build(), **options).settings


@pytest.mark.parametrize("name", ROWS)
def test_the_numbers_are_those_published(name):
    found, text = published(name), ROWS[name]
    seen = 0
    for pattern, setting in NUMBERS.items():
        if (number := re.search(pattern, text)) is not None:
            assert found[setting] == float(number[1].replace(",", "")), setting
            seen += 1
    for word, (setting, value) in OPTIMIZERS.items():
        if word in text:
            assert found[setting] == value
            seen += 1
    if (drop_path := re.search(r"drop path ([\d.]+)", text)) is not None:
        assert PRESETS[name].settings["drop_path_rate"] == float(drop_path[1])
    warm_up = re.search(r"(\d+) warm-up epochs", text)
    assert warm_up is None or found["warmup_steps"] * PRESETS[name].epochs == pytest.approx(float(warm_up[1]))
    assert (found["ce_weight"] == 0) == ("no labels" in text)
    assert found.get("binary_cross_entropy", False) == ("binary cross-entropy" in text)
    assert ("ema_decay" in found) == ("EMA" in text)
    assert (found.get("auto_augment") == "randaugment") == ("RandAugment" in text or name == "ml-dr")
    assert seen >= (2 if name == "funmatch" else 3)


def test_what_the_table_leaves_open():
    """The sentence below the table."""
    batches = {
        name: each.settings.get("learning_rate", each.cnn.get("learning_rate")) for name, each in PRESETS.items()
    }
    assert {name: rate.batch for name, rate in batches.items()} == {
        "usi": 1024, "vanilla": 2048, "funmatch": 4096, "ml-dr": 1024, "fast": 512,
    }  # fmt: skip
    assert batches["funmatch"].value == 0.03 and batches["ml-dr"] == Rate(0.4, 1024)
    funmatch, usi, vanilla, ml_dr = (published(name) for name in ("funmatch", "usi", "vanilla", "ml-dr"))
    assert funmatch["weight_decay"] == pytest.approx(0.0003 / 0.03) and funmatch["max_grad_norm"] == 1
    assert funmatch["warmup_steps"] == pytest.approx(5000 / (1200 * 0.98 * IMAGENET / 4096), rel=1e-2)
    assert usi["repeated_augmentation"] == 3 and usi["ema_decay"] == pytest.approx(0.99996, abs=1e-6)
    assert [vanilla[key] for key in ("ce_weight", "kd_weight")] == [1, 1]
    assert vanilla["warmup_steps"] == pytest.approx(5 / 300) and ml_dr["warmup_steps"] == pytest.approx(5 / 150)
    assert [ml_dr[key] for key in ("random_erasing", "mixup_alpha", "cutmix_alpha")] == [0.25, 1, 1]
    assert published("fast")["lr_decay_epochs"] == [30, 60, 90]


def test_the_length_follows_the_number_of_images():
    """16 times fewer images, twice the epochs; the average and the steps down follow; a user's length wins."""
    few = published("usi", images=IMAGENET // 16, batch_size=64)
    assert few["num_train_epochs"] == 600
    steps = 600 * -(-(IMAGENET // 16) // 64)
    assert 1 / (1 - few["ema_decay"]) == pytest.approx(steps * 25_000 / 375_300, rel=1e-2)
    fast = published("fast", images=IMAGENET // 16)
    assert fast["num_train_epochs"] == 200 and fast["lr_decay_epochs"] == [60, 120, 180]
    mine = published("fast", images=1000, batch_size=100, num_train_epochs=50)
    assert "num_train_epochs" not in mine and mine["lr_decay_epochs"] == [15, 30, 45]
    mine = published("fast", images=1000, batch_size=100, max_steps=100)  # 10 epochs
    assert "num_train_epochs" not in mine and mine["lr_decay_epochs"] == [3, 6, 9]
    stream = published("fast", images=0, max_steps=1000)  # all of it is one epoch
    assert stream["lr_decay_epochs"] == [0.3, 0.6, 0.9]
    unknown = published("fast", images=None)
    assert not {"num_train_epochs", "lr_decay_epochs", "ema_decay"} & unknown.keys()


def test_the_learning_rate_follows_the_batch():
    """SGD's in proportion, those of AdamW and LAMB by the root."""
    assert published("fast", batch_size=64)["learning_rate"] == pytest.approx(0.2 / 8)
    assert published("usi", batch_size=64)["learning_rate"] == pytest.approx(2e-3 / 4)
    assert published("vanilla", batch_size=128)["learning_rate"] == pytest.approx(5e-3 / 4)
    assert published("fast", vit, batch_size=64)["learning_rate"] == pytest.approx(1e-3 / 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_has_a_place_and_a_source(name, kind):
    found = preset_settings(name, KINDS[kind](), images=1000, batch_size=10)
    assert found.sources.keys() == found.settings.keys() == found.training.keys() | found.data.keys() | {"student_init"}
    args = GDKDConfig(use_cpu=True, report_to="none", **found.training)
    assert args.loss == PRESETS[name].settings["loss"] and found.student["init"] == "random"
    transformer = name in ("funmatch", "ml-dr", "fast") and kind == "transformer"
    assert ("2012.12877" in found.sources["weight_decay"]) == transformer


def test_a_student_by_name_has_drop_path_where_its_architecture_has_it():
    sizes = {"images": 1000, "batch_size": 64}
    for student, family in (("timm/resnet18", "sgd"), ("timm/vit_tiny_patch16_224", "adamw_torch_fused")):
        found = preset_settings("ml-dr", student, **sizes)
        assert found.settings["optim"] == family
        assert preset_settings("vanilla", student, **sizes).student["config"] == {"drop_path_rate": 0.05}
    for student in ("timm/vgg11", "cifar/resnet20"):
        assert preset_settings("vanilla", student, **sizes).student["config"] is None


def test_what_the_user_sets_takes_its_group_along():
    sizes = {"images": 1000, "batch_size": 64}
    found = preset_settings("usi", CNN(), given={"loss", "mixup_alpha"}, **sizes)
    assert not {"loss", "kd_weight", "ce_weight", "temperature", "mixup_alpha"} & found.settings.keys()
    assert set(found.overridden) == {"loss", "kd_weight", "ce_weight", "temperature", "mixup_alpha"}
    assert "kd_weight" in preset_settings("usi", CNN(), given={"temperature"}, **sizes).settings
    assert "timm_optimizer" not in preset_settings("vanilla", CNN(), given={"optim"}, **sizes).settings
    assert "lr_decay_epochs" not in preset_settings("fast", CNN(), given={"lr_scheduler_type"}, **sizes).settings


def test_no_such_preset():
    refusal(
        lambda: preset_settings("best", nn.Linear(2, 2), images=9, batch_size=3), "'best'", "usi, vanilla, funmatch"
    )
