"""Show what a teacher predicts, and what a student did not learn of it, as one page with figures.

    python scripts/analyze.py --teacher runs/digits-teacher --output_dir runs/report
    python scripts/analyze.py --teacher runs/digits-teacher --student runs/student --output_dir runs/report
    python scripts/analyze.py --teacher_cache runs/cache --output_dir runs/report

The images are those that the model held out in its training, as its recipe.yaml says, unless the flags say otherwise;
of a teacher cache, the logits are read and no image is. Writes index.html, which needs nothing else, a PNG for each
figure, analysis.json with the numbers, and averages.npz with the average predictions of all classes. Under torchrun
the processes share the images.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from hf_gdkd.commands.arguments.help import show_help

    show_help("analyze")

from collections.abc import Sequence
from typing import Any

from accelerate import PartialState

from hf_gdkd.commands.analysis import analyze, parse_analysis, where
from hf_gdkd.commands.running import quiet, run
from hf_gdkd.publishing.reports import page_of_space


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Write the report; returns what its JSON holds."""
    options, wanted = parse_analysis(argv)
    quiet()
    numbers = analyze(options, wanted)
    if PartialState().is_main_process:
        space = "" if options.push_space is None else f", and at {page_of_space(options.push_space)}"
        print(f"the report is in {where(options.output_dir)}{space}")
    return numbers


if __name__ == "__main__":
    run(main)
