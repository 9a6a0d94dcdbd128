"""What a report advises before training: which k, and whether the partition suits the teacher."""

from __future__ import annotations

from typing import Any

from .distribution import Distribution, modes
from .report import Report


def advise(report: Report, found: Distribution, trained_on: Distribution, command: str) -> dict[str, Any]:
    """Add the options of a first run to a report, each with its reason; returns them.

    Args:
        report: what is added to.
        found: the teacher's predictions.
        trained_on: those for images as training shows them, by which k is chosen.
        command: the start of the command that trains a student, up to the loss.
    """
    numbers, own_modes = trained_on.numbers(), modes(found.average("renormalized"))
    k, mass = numbers["knee"], numbers["mass"]
    several = sum(len(each) > 1 for each in own_modes)
    present = int((found.sums["images_of"] > 0).sum())
    suits = 4 * several >= present
    report.section("A first run")
    rows = [
        ["loss", "gdkd" if suits else "gdkd, beside kd",
         f"In {several} of {present} classes at least two others stand out of the rest, "
         + ("which the groups bring out." if suits else "so there may be little to gain over plain distillation.")],
        ["k", k, f"The {k} largest classes hold {100 * mass[k - 1]:.1f} % of the probability, the largest alone "
         f"{100 * mass[0]:.1f} %; from there on the curve flattens."],
        ["weights, temperature", "unset", "The loss's own defaults, which are the paper's for its transformers."],
    ]  # fmt: skip
    report.table("Options and their reasons", ["option", "value", "reason"], rows, words=["value", "reason"])
    words = f"{command} --loss gdkd --k {k}"
    report.text(words, command=True)
    return {"loss": "gdkd", "k": k, "classes_with_several_modes": several, "command": words}
