"""The table of `--loss auto`: what it stands for, case by case. To change a recommendation, edit `ROWS`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

CNN, TRANSFORMER = "a CNN", "a transformer"


class Row(NamedTuple):
    """What `auto` stands for in some cases: `ROWS` are tried in order, and the first that a run can have is taken."""

    settings: Mapping[str, tuple[Any, str]]
    """By flag, or for one of several losses by its name and option: the value, and the reason in a sentence."""
    source: str
    """What the row was found by."""
    student: str | None = None
    """CNN or TRANSFORMER; None: any."""
    classes: tuple[float, float] = (2, math.inf)
    epochs: tuple[float, float] = (0, math.inf)
    """From the first to below the second."""
    labels: bool | None = True
    """Whether there is a cross-entropy with labels; None: either."""
    maps: bool = False
    """Whether each pixel has a class."""

    def suits(self, student: str, classes: float, epochs: float, labels: bool, maps: bool) -> bool:
        """Whether this is for such a run."""
        inside = self.classes[0] <= classes <= self.classes[1] and self.epochs[0] <= epochs < self.epochs[1]
        return inside and self.student in (None, student) and self.labels in (None, labels) and self.maps == maps


TRIALS = (
    "this project's trials on Fashion-MNIST (6,000 images) and glyphs (6,200), judged on rows cut from the training "
    "data (RESULTS.md, automatic weights)"
)
DIST_AND_FITNET = {
    "loss": ("dist+fitnet", "relations between classes and samples, and a signal from inside the teacher."),
    "temperature": (4.0, "it shows how the teacher ranks the classes that it does not choose."),
    "ce_weight": (1.0, "the weight of dist is measured by the cross-entropy."),
    "kd_weight": (1.0, "the parts have weights of their own."),
    "dist.weight": ("auto:4", "its gradient at the logits becomes four times that of the cross-entropy."),
}
FITNET = {  # its options, by the student
    student: {
        "fitnet.weight": (weight, "of the scale-free form, in which one weight means the same for every teacher."),
        "fitnet.normalize": (True, "the scale-free form."),
        "fitnet.stages": ("all", "the student learns more from every stage of the teacher than from the last alone."),
    }
    for student, weight in {CNN: 30, TRANSFORMER: 100}.items()
}
DIST_ALONE = {
    "loss": ("dist", "with automatic weights it has a higher mean than kd and gdkd in each table that has all three."),
    "temperature": DIST_AND_FITNET["temperature"],
    "ce_weight": DIST_AND_FITNET["ce_weight"],
    "kd_weight": ("auto:8", "its gradient at the logits becomes eight times that of the cross-entropy."),
}

NO_LABELS = {
    "ce_weight": (0.0, "there are no labels."),
    "kd.weight": (1.0, "the teacher's own prediction, in the place of the labels, measures the other losses."),
    "kd.temperature": (1.0, "as a label would be learned."),
    "dist.weight": ("auto:4", "its gradient at the logits becomes four times that of kd."),
}
KD_OF_TWO = {"loss": ("kd", "of two classes, the correlation that dist takes is always 1 or -1.")}
NO_TRIALS = "what the losses are; no trials"

ROWS = (
    Row(
        {
            "loss": (
                "gdkd",
                "with gamma it had the highest mean of the losses on label maps; dkd and cwd were not seen to differ.",
            ),
            "gamma": (1.0, "relations between the pixels of a batch."),
            "temperature": (2.0, "the best of 1, 2 and 4."),
            "k": (3, "as it was tuned."),
            "w0": (1.0, "as it was tuned."),
            "w1": (1.0, "as it was tuned."),
            "w2": (2.0, "as it was tuned."),
            "ce_weight": (1.0, "as published."),
            "kd_weight": (1.0, "as published."),
        },
        "RESULTS.md, fashion-scenes, three seeds",
        labels=None,
        maps=True,
        classes=(4, math.inf),
    ),
    Row(
        {
            "loss": ("kd", "there are too few classes for the groups of gdkd."),
            "temperature": (2.0, "as for more classes."),
            "ce_weight": (1.0, "as for more classes."),
            "kd_weight": (1.0, "as for more classes."),
        },
        NO_TRIALS,
        labels=None,
        maps=True,
    ),
    *(
        Row(
            {key: value for key, value in DIST_AND_FITNET.items() if key != "dist.weight"}
            | {"loss": ("kd+fitnet", KD_OF_TWO["loss"][1])}
            | {"kd.weight": ("auto:1", "its gradient at the logits becomes as large as that of the cross-entropy.")}
            | FITNET[student],
            NO_TRIALS,
            student=student,
            classes=(2, 2),
        )
        for student in FITNET
    ),
    Row(DIST_ALONE | KD_OF_TWO, NO_TRIALS, classes=(2, 2)),
    *(Row(DIST_AND_FITNET | FITNET[student], TRIALS, student=student) for student in FITNET),
    Row(DIST_ALONE, "RESULTS.md, automatic weights"),  # without features
    *(
        Row(
            DIST_AND_FITNET | NO_LABELS | {"loss": ("kd+dist+fitnet", DIST_AND_FITNET["loss"][1])} | FITNET[student],
            NO_TRIALS,
            student=student,
            labels=False,
            classes=(3, math.inf),
        )
        for student in FITNET
    ),
    Row(
        DIST_AND_FITNET
        | NO_LABELS
        | {"loss": ("kd+dist", "relations between classes and samples, beside the teacher's prediction.")},
        NO_TRIALS,
        labels=False,
        classes=(3, math.inf),
    ),
    *(
        Row(
            {
                "loss": ("kd", "all that is left: the most probable classes are enough for it, and two classes too."),
                "temperature": (1.0, "the only temperature that the most probable classes are enough for."),
                "ce_weight": (float(labels), "the labels." if labels else "there are no labels."),
                "kd_weight": (1.0, "as much as labels have."),
            },
            NO_TRIALS,
            labels=labels,
        )
        for labels in (True, False)
    ),
)
