"""What a report advises before training: what `--loss auto` stands for, which k suits GDKD, what others gained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..losses.registry import FEATURE_LOSSES
from ..training.auto_table import CNN, ROWS, TRANSFORMER, Row
from .distribution import Distribution, modes
from .known_gains import Gain, known_gains, similar_case
from .report import Report


def advise(
    report: Report,
    found: Distribution,
    trained_on: Distribution,
    command: str,
    *,
    student: str | None = None,
    epochs: float = 10.0,
    features: bool = True,
    maps: bool = False,
) -> dict[str, Any]:
    """Add the options of a first run to a report, each with its reason; returns them.

    Args:
        report: what is added to.
        found: the teacher's predictions.
        trained_on: those for images as training shows them, by which k is chosen.
        command: the start of the command that trains a student, up to the loss.
        student: `auto_table.CNN` or TRANSFORMER; None if it is not known.
        epochs: of the training.
        features: whether the teacher's features can be had: not from a cache.
        maps: whether each pixel has a class.
    """
    report.section("A first run")
    cases = {family: (family, found.num_classes, epochs, found.labelled, maps) for family in (CNN, TRANSFORMER)}
    chosen = {family: _row_for(case, features) for family, case in cases.items() if student in (None, family)}
    commands = {"auto": f"{command} --loss auto"}
    report.text("What is recommended where nothing is known but the models and the data:")
    report.text(commands["auto"], command=True)
    for row in dict.fromkeys(map(id, chosen.values())):
        families = [family for family, each in chosen.items() if id(each) == row]
        _describe(report, next(each for each in chosen.values() if id(each) == row), families)
    numbers, own_modes = trained_on.numbers(), modes(found.average("renormalized"))
    k, mass = numbers["knee"], numbers["mass"]
    several = sum(len(each) > 1 for each in own_modes)
    present = int((found.sums["images_of"] > 0).sum())
    suits = 4 * several >= present
    rows = [
        ["loss", "gdkd" if suits else "gdkd, beside kd",
         f"In {several} of {present} classes at least two others stand out of the rest, "
         + ("which the groups bring out." if suits else "so there may be little to gain over plain distillation.")],
        ["k", k, f"The {k} largest classes hold {100 * mass[k - 1]:.1f} % of the probability, the largest alone "
         f"{100 * mass[0]:.1f} %; from there on the curve flattens."],
    ]  # fmt: skip
    report.table(
        "GDKD for this teacher: its other options are the paper's, unless you set them",
        ["option", "value", "reason"], rows, words=["value", "reason"],
    )  # fmt: skip
    commands["gdkd"] = f"{command} --loss gdkd --k {k}"
    report.text(commands["gdkd"], command=True)
    return {
        "auto": {family: {key: value for key, (value, _) in row.settings.items()} for family, row in chosen.items()},
        "k": k,
        "classes_with_several_modes": several,
        "commands": commands,
        "known_gains": describe_gains(report, found.num_classes, student, maps=maps),
    }


def _row_for(case: Sequence[Any], features: bool) -> Row:
    """The first row of the table of `auto` that suits a case and, without features, needs none."""
    return next(row for row in ROWS if row.suits(*case) and (features or not _needs_features(row)))


def _needs_features(row: Row) -> bool:
    return not FEATURE_LOSSES.keys().isdisjoint(row.settings["loss"][0].split("+"))


def _describe(report: Report, row: Row, families: Sequence[str]) -> None:
    rows = [[name, _value(value), f"{reason[0].upper()}{reason[1:]}"] for name, (value, reason) in row.settings.items()]
    report.table(
        f"What --loss auto stands for here (the student is {' or '.join(families)}); found by: {row.source}",
        ["option", "value", "reason"], rows, words=["value", "reason"],
    )  # fmt: skip


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_gains(report: Report, classes: int, student: str | None, *, maps: bool = False) -> dict[str, Any] | None:
    """Add what losses gained on the most similar case of this project's comparisons; None if there is none."""
    case = similar_case(classes, maps=maps)
    if case is None:
        report.text(
            f"How much to expect is not known: none of the project's comparisons is of about {classes:,} classes. "
            "Train the student with --loss ce, too, to see."
        )
        return None
    gains = known_gains(case, student)
    columns = ["student", "loss", "above ce, points", "95 % interval", "above kd, points", "95 % interval of that"]
    rows = [[x.student, x.loss, *_points(x.to_ce), *(_points(x.to_kd) if x.loss != "kd" else ("-", ""))] for x in gains]
    report.table(
        f"What to expect: gains on the most similar case that was measured, {case.name} ({case.classes} classes, "
        f"{case.images:,} images, {_seeds(gains)} seeds, equal tuning), in points of "
        f"{'mean IoU' if maps else 'accuracy'}; an interval that holds 0 is no gain that was seen"
        + ("; kd long: kd for more epochs" if any(each.loss == "kd long" for each in gains) else ""),
        columns, rows, words=["loss"],
    )  # fmt: skip
    return {"case": case._asdict(), "gains": [each._asdict() for each in gains]}


def _seeds(gains: Sequence[Gain]) -> str:
    return " to ".join(map(str, sorted({each.seeds for each in gains})))


def _points(interval: tuple[float, float, float]) -> tuple[str, str]:
    mean, low, high = (100 * each for each in interval)
    return f"{mean:+.2f}", f"{low:+.2f} to {high:+.2f}"
