"""The picture of what grows."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

SUBJECTS = ("batch", "classes", "k", "image size")


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """A picture of what grows with batch, classes, k and image size."""
    figure = Figure(figsize=(14, 3.2), layout="constrained")
    axes = figure.subplots(1, len(SUBJECTS))
    for axis, what in zip(axes, SUBJECTS, strict=True):
        own = [row for row in rows if row["group"] == f"growth with {what}"]
        sizes = [float(row["setting"]) for row in own]
        middle, low, high = ([float(row[f"ratio_{p}"]) for row in own] for p in ("p50", "p20", "p80"))
        axis.plot(sizes, middle, marker="o")
        axis.fill_between(sizes, low, high, alpha=0.3)
        axis.set(xscale="log", xlabel=what, ylim=(0, None), title=f"{own[0]['name']} / {own[0]['yardstick']}")
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axis.minorticks_off()
    axes[0].set_ylabel("ratio of times")
    figure.savefig(path, dpi=110)
