"""The one look of every picture of the project, in colours that colour-blind readers tell apart."""

from __future__ import annotations

from contextlib import AbstractContextManager

# Okabe and Ito's colours
COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
TEACHER, STUDENT, OTHER = "#0072b2", "#d55e00", "#009e73"
LINES = (TEACHER, "#e69f00", OTHER, STUDENT, "#cc79a7", "#56b4e9", "#000000")  # those that are seen on white


def style() -> AbstractContextManager:
    """Inside, figures of matplotlib have the project's look."""
    from cycler import cycler
    from matplotlib import rc_context

    return rc_context(
        {
            "axes.prop_cycle": cycler(color=LINES),
            "axes.axisbelow": True,
            "axes.grid": True,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 10,
            "figure.facecolor": "white",
            "font.size": 9,
            "grid.alpha": 0.3,
            "image.cmap": "cividis",
            "legend.fontsize": 8,
            "legend.frameon": False,
            "savefig.dpi": 120,
        }
    )


def short(name: str, most: int = 18) -> str:
    """A name that fits into a figure.

    >>> short("great white shark", 10)
    'great whi…'
    """
    return name if len(name) <= most else f"{name[: most - 1]}…"
