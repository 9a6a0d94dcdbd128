"""The paper's recipes: their numbers against the published tables, as arguments, and one training step each."""

import math
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import MultiStepLR
from transformers import SwinConfig, SwinForImageClassification, ViTConfig, ViTForImageClassification

from hf_gdkd import GDKDConfig, GDKDTrainer
from hf_gdkd.commands.arguments.distill_flags import DistillArguments
from hf_gdkd.commands.arguments.parsing import parse
from hf_gdkd.commands.recipes import CIFAR100_LOSSES, RECIPES, listing, recipe_settings
from hf_gdkd.errors import InputError
from hf_gdkd.models.loading import load_model
from hf_gdkd.training.preset_table import PRESETS

ROOT = Path(__file__).parents[2]
FACTS = Path(__file__).with_name("recipes.md").read_text(encoding="utf-8")
VARIANTS = {name: name.split(" --standardize ") for name in CIFAR100_LOSSES}  # (loss,) or (loss, standardize)
CIFAR_PAIRS = [name for name in RECIPES if name.startswith("cifar100/") and "-" in name]
CNN_PAIRS = [name for name in RECIPES if re.match(r"(imagenet|cub200|tiny-imagenet)/resnet\d+-", name)]
OPTIONS = {
    **{name: name for name in ("w0", "w1", "w2", "k", "alpha", "beta", "gamma")},
    **{"ce": "ce_weight", "weight": "kd_weight", "T": "temperature", "warmup": "kd_warmup_epochs"},
}


def table(first_cell):
    """The rows of the table whose header begins with this cell."""
    lines = FACTS[FACTS.index(f"| {first_cell} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]


def options_in(text):
    """`ce 1, w0 0.5, T 1` as options by name."""
    found = re.findall(r"\b(\w+) ([\d.]+)(?=$|[,; ])", text)
    return {OPTIONS[key]: float(value) for key, value in found if key in OPTIONS}


# The numbers


@pytest.mark.parametrize("column, name", [(1, "cifar100/resnet32x4-resnet8x4"), (2, "imagenet/resnet34-resnet18"),
                                          (3, "imagenet/any-deit-tiny")])  # fmt: skip
@pytest.mark.parametrize("row", table("loss"), ids=lambda row: row[0])
def test_losses_have_the_published_options(row, column, name):
    loss = row[0].replace("kd, logits standardized", "kd --standardize global")
    found = dict(RECIPES[name].losses.get(loss, {}))
    if loss == "mlkd" and column == 1:
        assert found.pop("temperatures") == [2, 3, 4, 5, 6] and found.pop("mask_samples") and found.pop("mask_classes")
    expected = options_in(re.sub(r"\(.*?\)|T in.*", "", row[column]))
    if expected.get("kd_warmup_epochs") in (0, 1):  # the factor is 1 from the first epoch on
        del expected["kd_warmup_epochs"]
    by_pair = {"gdkd": ("w1", "w2"), "gdkd3": ("w1", "w2"), "dkd": ("beta",)} if column == 1 else {}
    for key in by_pair.get(loss, ()):
        del found[key]
        expected.pop(key, None)
    assert found == expected


@pytest.mark.parametrize("row", table("teacher"), ids=lambda row: "-".join(row[:2]))
def test_pairs_have_the_published_weights(row):
    teacher, student, gdkd, gdkd3, beta = row
    for loss, weights in (("gdkd", gdkd), ("gdkd3", gdkd3)):
        settings = recipe_settings(f"cifar100/{teacher}-{student}", loss)
        assert [settings["w1"], settings["w2"]] == [float(w) for w in weights.split(",")]
    settings = recipe_settings(f"cifar100/{teacher}-{student}", "dkd")
    assert settings["beta"] == float(beta)
    assert settings["student"] == f"cifar/{student}"
    assert settings["teacher"].lower() == f"runs/cifar100/{teacher}".lower()
    slow = student in ("MobileNetV2", "ShuffleV1", "ShuffleV2")
    assert settings["learning_rate"] == (0.01 if slow else 0.05)


def test_every_pair_of_the_table_is_there():
    assert len(CIFAR_PAIRS) == len(table("teacher")) == 11 and len(CNN_PAIRS) == 6


@pytest.mark.parametrize("name, heading", [
    ("cifar100/vgg13-vgg8", "## CIFAR-100:"), ("imagenet/resnet34-resnet18", "## ImageNet:"),
    ("cub200/resnet34-resnet18", "CUB-200-2011:"), ("tiny-imagenet/resnet50-mobilenetv1", "Tiny-ImageNet:"),
])  # fmt: skip
def test_training_is_as_published(name, heading):
    settings = recipe_settings(name, "gdkd")
    text = re.split(r"[\n.]\s", FACTS[FACTS.index(heading) :])[0]
    if name[0] in "ct" and "cifar" not in name:  # what the two transfers have in common stands in their heading
        text += FACTS[FACTS.index("## Transfer") :].splitlines()[0]

    def number(pattern):
        return float(re.search(pattern, text).group(1))

    decays = re.search(r"x0.1 at ((?:\d+(?:, )?)+)", text).group(1)
    assert settings["lr_decay_epochs"] == [int(epoch) for epoch in decays.removesuffix(", ").split(", ")]
    assert settings["num_train_epochs"] == number(r"(\d+) epochs") and settings["lr_decay_rate"] == 0.1
    assert settings["per_device_train_batch_size"] == number(r"batch (\d+)")
    assert settings["learning_rate"] == number(r"lr ([\d.]+)") and settings["weight_decay"] == number(
        r"decay ([\de-]+)"
    )
    assert settings["optim_args"] == "momentum=0.9" and settings["decay_all_weights"]


@pytest.mark.parametrize("student", ["deeplabv3_resnet18", "pspnet_resnet18"])
def test_cityscapes_is_as_published(student):
    text, name = FACTS[FACTS.index("## Cityscapes:") :].splitlines()[0], f"cityscapes/deeplabv3_resnet101-{student}"
    numbers = r"([\d,]+) iterations, batch (\d+), crop (\d+) x (\d+), SGD lr ([\d.]+), polynomial decay ([\d.]+)"
    *numbers, decay = re.search(numbers + r", weight decay ([\de-]+)", text).groups()
    steps, batch, height, width, rate, power = (float(word.replace(",", "")) for word in numbers)
    settings = recipe_settings(name, "gdkd")
    assert (settings["max_steps"], settings["per_device_train_batch_size"]) == (steps, batch)
    assert (settings["crop_size"], settings["learning_rate"]) == ([height, width], rate)
    assert (settings["lr_scheduler_kwargs"]["power"], settings["weight_decay"]) == (power, float(decay))
    for row in table("loss"):
        if row[4] not in ("", "-"):
            assert options_in(row[4].replace(", per pixel", "")).items() <= RECIPES[name].losses[row[0]].items()


@pytest.mark.parametrize("name", [name for name in CNN_PAIRS if "mobilenet" in name])
def test_mobilenet_v1_has_weights_of_its_own(name):
    assert (recipe_settings(name, "gdkd")["w1"], recipe_settings(name, "gdkd")["w2"]) == (2, 2)


def test_warm_up_reaches_the_published_factor_at_the_end_of_each_epoch():
    args = GDKDConfig(kd_warmup_epochs=recipe_settings("cifar100/vgg13-vgg8", "gdkd")["kd_warmup_epochs"])
    for epoch in range(1, 31):
        published = min(epoch / 20, 1)
        assert args.ramp(epoch) == published and published - 1 / 20 <= args.ramp(epoch - 0.5) <= published


# As arguments


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_arguments_with_every_loss(name, tmp_path):
    """Each value arrives where its name says, and each option in the loss."""
    losses = [("ce",)] if "ce" in RECIPES[name].losses else VARIANTS.values()
    for loss, *standardize in losses:
        settings = recipe_settings(name, loss, *standardize) | {"output_dir": str(tmp_path)}
        own = {f.name for f in fields(DistillArguments)}
        DistillArguments(**{key: value for key, value in settings.items() if key in own})
        args = GDKDConfig(**{key: value for key, value in settings.items() if key not in own})
        assert args.loss == loss and {key: getattr(args, key) for key in settings if key not in own} == {
            key: value for key, value in settings.items() if key not in own
        }
        if loss != "ce":
            args.build_loss().check_num_classes(100)


def test_flags_override_the_recipe():
    words = ["--recipe", "CIFAR100/resnet32x4-RESNET8x4", "--loss", "gdkd", "--teacher", "big", "--w2", "3"]
    script, args = parse([*words, "--learning_rate", "0.5", "--crop_padding", "0", "--crop_scale", "0.9"])
    assert (script.teacher, script.student, script.student_init) == (["big"], "cifar/resnet8x4", "random")
    assert (args.w0, args.w1, args.w2, args.k, args.temperature) == (1, 2, 3, 5, 4)
    assert (args.learning_rate, args.lr_decay_epochs, args.num_train_epochs) == (0.5, [150, 180, 210], 240)
    assert script.crop_scale == 0.9 and args.output_dir == "runs/cifar100/resnet32x4-resnet8x4-gdkd"


def test_the_standardized_variant_is_chosen_by_its_flag():
    words = ["--recipe", "cifar100/vgg13-vgg8", "--loss", "kd", "--teacher", "big"]
    plain, standardized = parse(words)[1], parse([*words, "--standardize", "global"])[1]
    assert (plain.ce_weight, plain.kd_weight, plain.temperature, plain.standardize) == (0.1, 0.9, 4, None)
    assert (standardized.ce_weight, standardized.kd_weight, standardized.temperature) == (0.1, 9, 2)
    assert standardized.standardize == "global"


def test_a_teacher_is_trained_without_one():
    script, args = parse(["--recipe", "cifar100/wrn_40_2"])
    assert args.loss == "ce" and script.teacher is None and args.output_dir == "runs/cifar100/wrn_40_2"
    assert script.crop_padding == 4 and args.max_grad_norm == 0


@pytest.mark.parametrize("words, said", [
    (["--recipe", "cifar100/resnet32x4-resnet8"], "there is no recipe 'cifar100/resnet32x4-resnet8': did you mean"),
    (["--recipe", "qqqq"], "--list_recipes names them all"),
    (["--recipe", "cifar100/vgg13-vgg8", "--loss", "ce"], "recipe cifar100/vgg13-vgg8 distils: choose another loss"),
    (["--recipe", "cifar100/vgg13", "--loss", "kd"], "loss kd needs a teacher"),
    (["--recipe", "imagenet/any-deit-tiny"], "loss gdkd needs a teacher: use --teacher"),
    (["--recipe", "cifar100/vgg13-vgg8"], "teacher runs/cifar100/vgg13 is not there: train it with "
     "--recipe cifar100/vgg13, or use --teacher."),
    (["--recipe", "cifar100/vgg13", "--config", "recipe.yaml"], "--config and --recipe are alternatives: use one"),
    (["--recipe", "cifar100/vgg13", "--crop_scale", "0.5"], "crop_padding and crop_scale are two ways to crop"),
    (["--recipe", "cifar100/vgg13", "--crop_padding", "-1"], "crop_padding is -1"),
    (["--recipe", "cifar100/vgg13", "--lr_scheduler_type", "cosine"], "add --lr_scheduler_type constant"),
])  # fmt: skip
def test_refusals(words, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        parse(words)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_teacher_of_the_augmented_rows():
    script, _ = parse(["--recipe", "cifar100-augmented/resnet32x4"])
    assert (script.auto_augment, script.cutout, script.crop_padding) == ("cifar10", 16, 4)


def test_processes_share_the_batch(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert recipe_settings("imagenet/resnet34-resnet18", "kd")["per_device_train_batch_size"] == 64
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="batches of 512, which 3 processes cannot share evenly"):
        recipe_settings("imagenet/resnet34-resnet18", "kd")


def test_the_list_names_every_recipe_without_a_heavy_import(tmp_path):
    for name in ("torch", "transformers", "yaml"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('too heavy')")
    command = [sys.executable, str(ROOT / "scripts/distill.py"), "--list_recipes"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert done.returncode == 0 and done.stderr == "" and done.stdout == listing() + "\n"
    recipes, _, presets = done.stdout.partition("\n--preset: ")
    assert set(RECIPES) == {line.strip() for line in recipes.splitlines() if line.startswith("  ")}
    assert {line.split()[0] for line in presets.splitlines()[1:]} == set(PRESETS)
    assert "not published, at this project's defaults: kd --standardize global, gdkd3, mlkd" in done.stdout


# One step


TINY = {"num_labels": 10, "image_size": 32, "patch_size": 8}
STAND_INS = {
    "deit-tiny": lambda: ViTForImageClassification(
        ViTConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, num_hidden_layers=1, **TINY)
    ),
    "swin-tiny": lambda: SwinForImageClassification(
        SwinConfig(embed_dim=8, depths=[1], num_heads=[2], window_size=2, **TINY | {"patch_size": 4})
    ),
}
STEPS = [*CIFAR_PAIRS, "imagenet/resnet34-resnet18", "imagenet/resnet50-mobilenetv1", "imagenet/any-deit-tiny",
         "imagenet/any-swin-tiny"]  # fmt: skip


@pytest.mark.parametrize("name, variant", zip(STEPS, 3 * list(VARIANTS.values()), strict=False))
def test_one_training_step(name, variant, tmp_path):
    """Each pair with one of the losses, in turn: SGD over all weights, a finite loss, and weights that move."""
    loss, *standardize = variant
    words = ["--recipe", name, "--loss", loss, *(["--standardize", *standardize] if standardize else [])]
    quick = "--max_steps 1 --per_device_train_batch_size 4 --save_strategy no --eval_strategy no --report_to none"
    script, args = parse([*words, *quick.split(), "--teacher", "t", "--output_dir", str(tmp_path), "--use_cpu",
                          "--kd_warmup_epochs", "0", "--warmup_steps", "0", "--disable_tqdm", "true"])  # fmt: skip
    torch.manual_seed(0)
    classes = [str(i) for i in range(10)]
    if script.student in STAND_INS:
        student, teacher = STAND_INS[script.student](), STAND_INS[script.student]()
    else:
        name = RECIPES[name].settings["teacher"].replace("runs/cifar100/", "cifar/")
        student, teacher = (load_model(n, label_names=classes, init="random").train() for n in (script.student, name))
    before = [p.detach().clone() for p in student.parameters()]
    data = [{"pixel_values": torch.randn(3, 32, 32), "labels": torch.tensor(i)} for i in range(4)]
    trainer = GDKDTrainer(student, teacher, args, train_dataset=data)
    trainer.train()
    after = list(student.parameters())
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"]) and all(p.isfinite().all() for p in after)
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True) if old.ndim > 1)
    if script.student not in STAND_INS:
        optimizer, scheduler = trainer.optimizer.optimizer, trainer.lr_scheduler
        (group,) = [group for group in optimizer.param_groups if group["params"]]
        assert isinstance(optimizer, torch.optim.SGD) and len(group["params"]) == len(before)
        assert (group["momentum"], group["weight_decay"]) == (0.9, args.weight_decay)
        assert isinstance(scheduler, MultiStepLR) and group["lr"] == args.learning_rate
