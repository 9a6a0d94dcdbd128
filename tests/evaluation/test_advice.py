"""What a report advises: what `--loss auto` is, and gains that are those of the results."""

import csv
import json
from pathlib import Path

import pytest
import torch
from tiny_cnns import CNN, distil

from hf_gdkd.comparison.gains import TABLE, gains_of
from hf_gdkd.evaluation.advice import advise
from hf_gdkd.evaluation.distribution import Distribution
from hf_gdkd.evaluation.known_gains import CASES, known_gains, similar_case
from hf_gdkd.evaluation.report import Report
from hf_gdkd.training.auto_table import CNN as OF_CNN
from hf_gdkd.training.auto_table import TRANSFORMER
from hf_gdkd.training.loss_options import as_dict

RESULTS = Path(__file__).parents[2] / "results"


def advice(classes=10, **options):
    found = Distribution(classes)
    found.add(torch.randn(50, classes, generator=torch.Generator().manual_seed(0)), torch.arange(50) % classes)
    report = Report("", "")
    return advise(report, found, found, "hf-gdkd distill --teacher t --student s --dataset d", **options), report


def test_it_is_what_auto_chooses(tmp_path):
    """The settings of a run with loss auto, of the same student, are those that are advised for it."""
    args = distil(tmp_path, "auto", CNN).args
    settings = advice(classes=4, student=OF_CNN)[0]["auto"][OF_CNN]
    own = as_dict(args.loss_options)
    assert settings == {key: own[key] if key in own else getattr(args, key) for key in settings}
    assert {key.partition(".")[0] for key in own} == {"dist", "fitnet"}


def test_without_features_it_needs_none():
    settings = advice(features=False)[0]["auto"]
    assert {each["loss"] for each in settings.values()} == {"dist"} and settings.keys() == {OF_CNN, TRANSFORMER}


def test_the_gains_are_those_of_the_results():
    """Else `python -m hf_gdkd.comparison.gains results` writes the table anew."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == gains_of(RESULTS)


@pytest.mark.parametrize("classes, maps, name", [
    (10, False, "fashion-mnist"), (100, False, "glyphs"), (19, True, "fashion-scenes"), (1000, False, None),
])  # fmt: skip
def test_the_most_similar_case(classes, maps, name):
    case = similar_case(classes, maps=maps)
    assert case is None if name is None else case.name == name


def test_gains_in_points_are_shown_with_their_intervals(tmp_path):
    with (RESULTS / "fashion-mnist.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["tuned_on"] == "fashion-mnist" and row["student"] == "vit"]
    best = max(rows, key=lambda row: float(row["to_ce"]))
    numbers, report = advice(student=TRANSFORMER)
    gains = numbers["known_gains"]["gains"]
    assert gains[0]["loss"] == best["loss"] and gains[0]["seeds"] == len(json.loads(best["last"]))
    assert gains[0]["to_ce"] == pytest.approx([float(best[f"to_ce{x}"]) for x in ("", "_low", "_high")], abs=5e-5)
    page = report.write(tmp_path, numbers).read_text()
    assert f"{100 * float(best['to_ce']):+.2f}" in page and "10 classes, 6,000 images, 5 seeds" in page
    assert len(known_gains(CASES[0])) == 2 * len(gains)
    none, report = advice(classes=1000)
    assert none["known_gains"] is None and "none of the project" in report.write(tmp_path, none).read_text()
