"""The table of what others reported: its figures are the facts', its commands are commands, and runs fill it in."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from hf_gdkd.commands.arguments.parsing import parse
from hf_gdkd.commands.recipes import RECIPES, recipe_settings
from hf_gdkd.comparison.reproduction import commands, reproduction
from hf_gdkd.errors import InputError
from hf_gdkd.training.run_files import write_metrics, write_run_settings

REPORTED = Path(__file__).parents[2] / "scripts/compare/reported.yaml"
TEACHERS, STUDENTS, IMAGENET = yaml.safe_load(REPORTED.read_text(encoding="utf-8"))
FACTS = Path(__file__).with_name("reported_results.md").read_text(encoding="utf-8")
COLUMNS = {"kd": 1, "kd --standardize global": 2, "dkd": 3, "mlkd": 5, "dist": 7}


def test_every_recipe_of_cifar_100_has_a_row_and_so_has_its_teacher():
    pairs = {name for name in RECIPES if name.startswith("cifar100/") and "-" in name}
    assert STUDENTS["recipes"].keys() == pairs
    assert TEACHERS["recipes"].keys() == {pair.split("-")[0] for pair in pairs}


def test_figures_are_those_reported():
    lines = [line.strip("| ").split(" | ") for line in FACTS.splitlines() if re.match(r"\| \w+ to ", line)]
    facts = {f"cifar100/{cells[0].replace(' to ', '-')}".lower(): cells for cells in lines}
    for name, (_, *figures) in STUDENTS["recipes"].items():
        if name == "cifar100/wrn_40_2-ShuffleV1":  # not in the facts; from the same README as the others
            continue
        for loss, figure in zip(STUDENTS["losses"], figures, strict=True):
            fact = facts[name.lower()][COLUMNS[loss]].split(" ±")[0] if loss in COLUMNS else "-"
            assert fact == ("-" if figure is None else f"{figure:.2f}"), (name, loss)
    for figures in IMAGENET["recipes"].values():
        assert all(f"{figure:.2f}" in FACTS for figure in figures[1:] if figure is not None)
    assert len(facts) == 11  # ten pairs and the header


@pytest.mark.parametrize("group", [TEACHERS, STUDENTS, IMAGENET], ids=lambda group: group["title"])
def test_commands_are_commands(group, monkeypatch):
    monkeypatch.setattr("hf_gdkd.commands.arguments.checks.check_teacher_is_trained", lambda teachers: None)
    folders = set()
    for command in commands(group):
        accelerate, launch, script, *flags = shlex.split(command)
        assert [accelerate, launch, script] == ["accelerate", "launch", "scripts/distill.py"]
        folders.add(parse(flags)[1].output_dir)
    assert len(folders) == len(commands(group))  # no run in another's folder


def test_what_was_run_stands_beside_what_was_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = "| cifar100/vgg13-vgg8 | 72.98 / {} | 74.36 / {} | 74.68 / not run |"
    assert row.format("not run", "not run") in reproduction(REPORTED)
    for loss, top1 in ((("kd",), 0.7312), (("kd", "global"), 0.745)):
        settings = recipe_settings("cifar100/vgg13-vgg8", *loss)
        path = Path(settings["output_dir"])
        path.mkdir(parents=True)
        write_run_settings(path, settings)
        write_metrics(path, {"top1": top1})
    assert row.format("73.12", "74.50") in reproduction(REPORTED)
    write_run_settings(path, settings | {"max_steps": 10})
    assert row.format("73.12", "not run") in reproduction(REPORTED)
    write_run_settings(path, settings | {"temperature": 3.0})
    assert row.format("73.12", "not run") in reproduction(REPORTED)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        reproduction(tmp_path / "reported.yaml")


@pytest.mark.parametrize("text", ["", "a: 1", "- title: it"])
def test_a_file_without_groups(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=r"a\.yaml is not a list of groups, each with about, losses, recipes, title"):
        reproduction(tmp_path / "a.yaml")
