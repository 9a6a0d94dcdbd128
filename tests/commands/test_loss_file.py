"""A loss in a file of the user's own: `--loss_file`."""

import json
from pathlib import Path

import pytest
import torch

from hf_gdkd.commands.arguments.parsing import parse
from hf_gdkd.errors import InputError
from hf_gdkd.losses import LOSSES, build_loss

ROOT = Path(__file__).parents[2]
LOSS = '''
"""KD by the squared difference of the logits (Ba and Caruana, NeurIPS 2014)."""

from hf_gdkd.losses import DistillationLoss, register_loss


class LogitMatching(DistillationLoss):
    def __init__(self, *, alpha=1.0, reduction="mean"):
        super().__init__(reduction=reduction)
        self.weights = {"mse": alpha}

    def compute(self, student, teacher, labels):
        return {"mse": (student - teacher).square().mean(-1)}


register_loss("logit_matching", LogitMatching)
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES, "kd", LOSSES["kd"])  # so that what is registered goes again
    before = dict(LOSSES)
    (tmp_path / "my_loss.py").write_text(LOSS)
    yield tmp_path / "my_loss.py"
    LOSSES.clear()
    LOSSES.update(before)


def arguments(file, *more, folder="out"):
    words = f"--teacher t --student s --loss logit_matching --output_dir {file.parent / folder} --use_cpu".split()
    return [*words, "--loss_file", str(file), *more]


def test_the_loss_is_known_by_its_name_and_takes_its_options(file):
    _, args = parse(arguments(file, "--alpha", "2"))
    loss = args.build_loss()
    assert loss(torch.zeros(3, 4), torch.ones(3, 4)) == 2.0
    parse(arguments(file))  # again in one process, as the demo does
    with pytest.raises(InputError, match="takes no option 'k': it takes alpha"):
        parse(arguments(file, "--k", "2"))


@pytest.mark.parametrize(
    "code, message",
    [
        ("x = 1", "registers no loss: call register_loss"),
        ("import nowhere", "fails: ModuleNotFoundError: No module named 'nowhere'"),
        ("def broken(:", "fails: SyntaxError"),
        ("from hf_gdkd.losses import *; register_loss('gdkd', KDLoss)", "'gdkd' is taken"),
    ],
)
def test_a_file_that_registers_nothing_is_a_sentence(file, code, message):
    file.write_text(code)
    for _ in range(2):  # a failure is not remembered as a success
        with pytest.raises(InputError, match=message):
            parse(arguments(file))


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.py is not a Python file"):
        parse(arguments(tmp_path / "nothing.py"))


def test_settings_from_a_file_run_no_code(file):
    settings = file.with_name("recipe.yaml")
    settings.write_text(f"loss_file: {file}")
    with pytest.raises(InputError, match="loss_file"):
        parse(["--config", str(settings)])
    with pytest.raises(InputError, match="logit_matching"):
        build_loss("logit_matching")


def test_it_trains_from_the_command_line_on_digits(file, capsys):
    """A loss in one file, a student on the embedded digits: no other file is touched."""
    from hf_gdkd.scripts import distill

    demo, folder = ROOT / "scripts/demo", file.parent
    quick = (
        "--student_init random --dataset digits --use_cpu --disable_tqdm true --save_strategy no --max_steps".split()
    )
    distill.main(["--student", f"{demo}/cnn", "--loss", "ce", *quick, "9", "--output_dir", f"{folder}/teacher"])
    words = ["--teacher", f"{folder}/teacher", "--student", f"{demo}/cnn", *quick, "2", "--allow_weak_teacher"]
    distill.main([*words, "--loss_file", str(file), "--loss", "logit_matching", "--output_dir", f"{folder}/student"])
    assert json.loads((folder / "student/metrics.json").read_text())["top1"] >= 0
    recipe = (folder / "student/recipe.yaml").read_text()
    assert "loss: logit_matching" in recipe and "loss_file" not in recipe
    assert "--loss_file" in (folder / "student/README.md").read_text()  # the command that repeats the run

    capsys.readouterr()
    both = ["--loss", "logit_matching+dist", "--loss_options", "logit_matching.weight=auto", "--logging_steps", "1"]
    distill.main([*words, "--loss_file", str(file), *both, "--output_dir", f"{folder}/both"])
    said = capsys.readouterr().out
    assert "'share/logit_matching': " in said and "'weight/logit_matching': " in said and "weight/dist" not in said
    assert "(auto × logit_matching + 1.0 × dist)" in (folder / "both/README.md").read_text()
    assert "- logit_matching.weight=auto" in (folder / "both/recipe.yaml").read_text()
