"""The console command: its help is quick and short, its lists are complete, and an unknown command is one sentence."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

import hf_gdkd
from hf_gdkd.commands.arguments.distill_flags import DistillArguments
from hf_gdkd.commands.arguments.help import RARE, distill_help
from hf_gdkd.commands.losses import losses_listing
from hf_gdkd.commands.main import COMMANDS, main
from hf_gdkd.commands.recipes import listing
from hf_gdkd.losses import FEATURE_LOSSES, LOSSES, KDLoss, loss_options, register_loss
from hf_gdkd.training.options import DistillationOptions

SCRIPTS = Path(__file__).parents[2] / "scripts"
HEAVY = {"torch", "transformers", "datasets", "accelerate", "timm", "torchvision", "numpy", "sklearn", "yaml", "PIL"}


def words_of(text):
    return set(text.replace("`", " ").split())


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_usage(argv, capsys):
    main(argv)
    assert set(COMMANDS) <= words_of(capsys.readouterr().out)


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"hf-gdkd {hf_gdkd.__version__}\n"


@pytest.mark.parametrize("argv, said", [
    (["distil"], "there is no command 'distil': choose one of distill, evaluate, analyze, cache, push, compare, "
     "replay, losses, recipes."),
    (["recipes", "cifar100"], "unrecognized arguments: cifar100; hf-gdkd recipes --help lists the flags."),
    (["push"], "the following arguments are required: folder; hf-gdkd push --help lists the flags."),
    (["distill", "--num_processes", "0"], "num_processes is 0: use a whole number of at least 1."),
])  # fmt: skip
def test_bad_words_are_one_sentence(argv, said, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2 and capsys.readouterr() == ("", f"error: {said}\n")


CODE = """
import contextlib, io, runpy, sys
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
    {run}
assert "usage" in out.getvalue() or "cifar100/" in out.getvalue(), out.getvalue()
print(*(name for name in sys.modules))
"""
RUNS = [f"from hf_gdkd.commands.main import main; main([{c!r}, '--help'])" for c in COMMANDS]
RUNS += ["from hf_gdkd.commands.main import main; main(['recipes'])"]
RUNS += [
    f"sys.argv[1:] = ['--help']; runpy.run_path({str(SCRIPTS / script)!r}, run_name='__main__')"
    for script in ("distill.py", "evaluate.py", "analyze.py", "push.py", "compare.py", "replay.py")
]


@pytest.mark.parametrize("run", RUNS)
def test_help_imports_nothing_heavy(run):
    done = subprocess.run([sys.executable, "-c", CODE.format(run=run)], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())


def test_the_help_of_distill_is_short_and_wide_enough():
    """A new flag that makes it too long is one for RARE."""
    lines = distill_help().splitlines()
    assert len(lines) <= 80 and max(map(len, lines)) <= 100
    assert lines[:6] == [
        "usage: hf-gdkd distill --teacher NAME --student NAME [flags]", "", "Distil a teacher into a smaller student:",
        "", "  hf-gdkd distill --teacher google/vit-base --student deit-tiny --loss gdkd3",
        "  hf-gdkd distill --config runs/deit-tiny-gdkd3/recipe.yaml --output_dir runs/again",
    ]  # fmt: skip
    titles = [line.removesuffix(":") for line in lines[5:] if line and line[0] != " "]
    assert titles == ["Models", "Data", "Augmentation", "Loss", "Training", "Hub", "Settings"]


def test_the_help_holds_each_flag_once_and_all_of_them_on_demand():
    ours = {f.name for cls in (DistillArguments, DistillationOptions) for f in fields(cls)}
    assert ours >= RARE
    text = distill_help(everything=True)
    flags = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    wanted = (
        ours | {f.name for f in fields(TrainingArguments) if f.init} | {"config", "recipe", "num_processes", "help"}
    )
    assert sorted(flags) == sorted(f"--{name}" for name in wanted)
    short = words_of(distill_help())
    assert all(f"--{name}" in short for name in ours - RARE)


def test_losses_lists_every_loss_with_its_paper_options_and_defaults():
    class Mine(KDLoss):
        """Mine is better.

        Args:
            sharpness: how sharp
                it is.
        """

        def __init__(self, *, sharpness: float = 3.5) -> None:
            super().__init__()

    register_loss("mine", Mine)
    try:
        text = losses_listing()
    finally:
        del LOSSES["mine"]
    assert "mine: Mine is better.\n    --sharpness (3.5) how sharp it is.\n    --gradient_scaling (unset) Scale" in text
    parts = dict(part.split(": ", 1) for part in text.split("\n\n"))
    assert set(parts) == {*LOSSES, *FEATURE_LOSSES, "mine", "ce"}
    for name in LOSSES | FEATURE_LOSSES:
        assert "  Paper: " in parts[name] and all(f"--{option} (" in parts[name] for option in loss_options(name))
    assert "--w0 (0.5) weight of" in parts["gdkd"] and "--temperatures (2.0 3.0 4.0 5.0 6.0) each" in parts["mlkd"]
    assert max(map(len, text.splitlines())) <= 100


def test_losses_lists_those_of_a_file(capsys, monkeypatch):
    monkeypatch.setattr("hf_gdkd.commands.loss_file.run_loss_file", lambda path: print(f"ran {path}"))
    main(["losses", "--loss_file", "mine.py"])
    assert capsys.readouterr().out.startswith("ran mine.py\nkd: ")


def test_recipes_are_the_list_of_the_script(capsys):
    main(["recipes"])
    assert capsys.readouterr().out == listing() + "\n"
