"""`--preset` on the command line and in a settings file: what wins, what is recorded, and two steps of every preset."""

from pathlib import Path

import pytest
import torch
import yaml
from digit_models import save
from refusals import refusal

from hf_gdkd import GDKDTrainer
from hf_gdkd.commands.arguments.parsing import parse
from hf_gdkd.commands.arguments.settings_file import run_settings
from hf_gdkd.commands.build import training_data
from hf_gdkd.commands.presets import settle_preset
from hf_gdkd.commands.student import build_student
from hf_gdkd.data.datasets import collate
from hf_gdkd.data.loading import load_data
from hf_gdkd.data.views import View
from hf_gdkd.models.loading import load_processor
from hf_gdkd.scripts import distill
from hf_gdkd.tasks.task import Source
from hf_gdkd.training.preset_table import PRESETS
from hf_gdkd.training.same_run import check_same_run
from hf_gdkd.training.teacher import Teacher

DEMO = Path(__file__).parents[2] / "scripts/demo"
WORDS = ["--dataset", "digits", "--train_rows", "40", "--validation_rows", "20", "--allow_weak_teacher"]
WORDS += ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save(tmp_path_factory.mktemp("teacher"), 1)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", train_rows=40, validation_rows=20)


def words_for(teacher, *more, student="cnn"):
    return [*WORDS, "--teacher", teacher, "--student", str(DEMO / student), *more]


@pytest.mark.parametrize("student", ["cnn", "vit"])
@pytest.mark.parametrize("name", PRESETS)
def test_two_steps_of_every_preset(name, student, teacher, digits, tmp_path):
    short = ["--preset", name, "--max_steps", "2", "--per_device_train_batch_size", "8"]
    short += ["--eval_strategy", "no", "--save_strategy", "no", "--output_dir", str(tmp_path)]
    script, args = parse(words_for(teacher, *short, student=student))
    settle_preset(script, args, len(digits.train))
    model = build_student(script, Source(script.student), digits.label_names)
    view = View(load_processor(script.student))
    each = Teacher.load(teacher)
    each.match(digits.label_names, view)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    data = training_data(script, args, digits, view, [each])
    trainer = GDKDTrainer(model, each, args, train_dataset=data, data_collator=collate)
    assert trainer.train().global_step == 2
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert after.isfinite().all() and not torch.equal(before, after)
    kind = type(trainer.optimizer.optimizer).__name__
    adamw = name in ("usi", "funmatch") or student == "vit"
    assert kind == ("Lamb" if name == "vanilla" else "AdamW" if adamw else "SGD")
    assert (data.mix is not None) == (name != "fast") and args.save_strategy == "no"


def test_a_run_is_recorded_by_its_settings_and_repeats_without_the_preset(teacher, tmp_path, capsys):
    """The user's flags win over a settings file, which wins over the preset that it names."""
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({"preset": "usi", "mixup_alpha": 0.3, "weight_decay": 0.1}))
    words = ["--config", str(settings), "--weight_decay", "0.2", "--num_train_epochs", "2"]
    words += ["--per_device_train_batch_size", "16", "--save_strategy", "no", "--eval_strategy", "no"]
    distill.main(words_for(teacher, *words, "--output_dir", str(tmp_path / "one")))
    said = capsys.readouterr().out
    for line in (
        "preset usi stands for\n",
        "--learning_rate 0.00025 (arXiv 2204.03475; train.py of github.com/Alibaba-MIIL/Solving_ImageNet: 0.002 for "
        "batches of 1024, times the root of 16 / 1024)\n",
        "--ema_decay 0.9 (",
        "left out, because of what you set: weight_decay, mixup_alpha, eval_strategy, save_strategy",
    ):
        assert line in said, line
    recorded = yaml.safe_load((tmp_path / "one/recipe.yaml").read_text())
    assert "preset" not in recorded
    expected = {"loss": "kd", "kd_weight": 5.0, "temperature": 1.0, "learning_rate": 0.00025, "weight_decay": 0.2}
    expected |= {"mixup_alpha": 0.3, "cutmix_alpha": 1.0, "ema_decay": 0.9, "num_train_epochs": 2.0}
    assert expected.items() <= recorded.items()

    words = ["--config", str(tmp_path / "one/recipe.yaml"), "--use_cpu", "--output_dir", str(tmp_path / "again")]
    distill.main([*words, "--report_to", "none"])
    one, again = (tmp_path / name / "model.safetensors" for name in ("one", "again"))
    assert one.read_bytes() == again.read_bytes()
    assert "preset" not in capsys.readouterr().out


def parsed(teacher, *more, **options):
    script, args = parse(words_for(teacher, *more, **options))
    settle_preset(script, args, 1437)
    return script, args


def test_what_the_user_sets_wins(teacher):
    script, args = parsed(teacher, "--preset", "vanilla")
    assert args.num_train_epochs == 1639 and args.timm_optimizer == "lamb" and args.binary_cross_entropy
    assert args.learning_rate == pytest.approx(5e-3 * (64 / 2048) ** 0.5, rel=1e-3) and script.student_init == "random"
    _, args = parsed(teacher, "--preset", "vanilla", "--num_train_epochs", "7", "--optim", "sgd")
    assert args.num_train_epochs == 7 and args.timm_optimizer is None and args.optim == "sgd"
    _, args = parsed(teacher, "--preset=usi", "--loss=gdkd")  # with its own weights
    assert args.kd_weight == 1.0 and args.temperature is None and args.learning_rate == pytest.approx(5e-4)
    _, args = parsed(teacher, "--preset", "usi", "--loss", "kd")  # the preset's own loss
    assert args.kd_weight == 5.0
    _, args = parsed(teacher, "--preset", "fast", "--lr_scheduler_type", "cosine", "--label_free")
    assert args.lr_decay_epochs is None and args.ce_weight == 0
    _, args = parsed(teacher, "--preset", "fast", "--num_train_epochs", "10")
    assert args.lr_decay_epochs == [3, 6, 9]


def test_a_run_resumes_with_the_same_settings_however_its_batch_is_split(teacher):
    begun = run_settings(*parsed(teacher, "--preset", "usi"))
    split = ["--per_device_train_batch_size", "32", "--gradient_accumulation_steps", "2"]
    resumed = run_settings(*parsed(teacher, "--preset", "usi", *split))
    check_same_run(resumed, begun)
    assert begun["ema_decay"] == resumed["ema_decay"] and begun["learning_rate"] == resumed["learning_rate"]


def test_drop_path_joins_the_users_configuration(teacher):
    swin = "timm/swin_tiny_patch4_window7_224"
    more = ["--preset", "vanilla", "--student", swin, "--student_config", "depths=[1,1,1,1]"]
    script, _ = parsed(teacher, *more)
    assert script.student_config == ["drop_path_rate=0.05", "depths=[1, 1, 1, 1]"]
    script, _ = parsed(teacher, *more, "drop_path_rate=0.3")
    assert script.student_config == ["depths=[1,1,1,1]", "drop_path_rate=0.3"]


def test_what_is_refused(teacher):
    refusal(lambda: parse(words_for(teacher, "--preset", "best")), "preset is 'best'", "usi, vanilla, funmatch")
    both = ["--preset", "usi", "--recipe", "cifar100/resnet56-resnet20"]
    refusal(lambda: parse([*both, "--loss", "gdkd"]), "--preset and --recipe are alternatives")
    more = ["--preset", "usi", "--task", "semantic-segmentation"]
    refusal(lambda: parse(words_for(teacher, *more)), "presets are for --task image-classification")
