"""The main job on embedded real data: a teacher, and students that learn with several losses.

    python scripts/demo.py
    python scripts/demo.py --task semantic-segmentation

The first trains a residual network on scikit-learn's scanned digits, distils it into a small vision transformer and a
smaller residual network, and ends with a report on one of these (`hf-gdkd analyze`). The second trains a network that
finds these digits in scenes, pixel by pixel, and distils it into a smaller one. Each writes a table (demo.md) and a
picture (demo.png) to runs/demo or runs/demo-segmentation.
"""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from tqdm.auto import tqdm

from hf_gdkd.commands.running import run
from hf_gdkd.evaluation.report import PAGE
from hf_gdkd.publishing.reports import FOLDER
from hf_gdkd.publishing.wording import CLASSIFICATION, SEGMENTATION, WORDINGS
from hf_gdkd.scripts import analyze, distill, evaluate
from hf_gdkd.training.run_files import JUDGED, PICTURE, SEGMENTATION_PICTURE
from hf_gdkd.training.style import style

HERE = Path(os.path.relpath(Path(__file__).parent / "demo"))
SETTINGS = "--student_init random --save_strategy no --disable_tqdm true --overwrite"
LOSSES = ("ce", "kd", "gdkd", "gdkd3")


@dataclass(frozen=True)
class Demo:
    """What is trained for one task: the teacher is the first of the runs (model, loss)."""

    task: str
    output_dir: str
    settings: str
    epochs: Mapping[str, str]
    runs: Sequence[tuple[str, str]]
    shown: tuple[int, str]  # the run and its file that are the lower half of the picture
    analyzed: int | None  # the run whose student is compared with the teacher in the report
    caution: str


DEMOS = {
    CLASSIFICATION: Demo(
        task=CLASSIFICATION,
        output_dir="runs/demo",
        settings="--dataset digits --learning_rate 3e-3",
        epochs={"teacher": "15", "vit": "25", "cnn": "20"},
        runs=[("teacher", "ce"), *((student, loss) for student in ("vit", "cnn") for loss in LOSSES)],
        shown=(4, PICTURE),
        analyzed=4,
        caution="One seed on 1,797 digits: this proves the machinery, not the ranking of the losses.",
    ),
    SEGMENTATION: Demo(
        task=SEGMENTATION,
        output_dir="runs/demo-segmentation",
        settings="--dataset digit-scenes --learning_rate 5e-3 --per_device_train_batch_size 16 --scale_range 0.8 1.25",
        epochs={"scene-teacher": "24", "scene-student": "24"},
        runs=[("scene-teacher", "ce"), ("scene-student", "ce"), ("scene-student", "gdkd")],
        shown=(2, SEGMENTATION_PICTURE),
        analyzed=None,
        caution="One seed on 600 scenes: this proves the machinery, not the ranking of the losses.",
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate, show."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=DEMOS, default=CLASSIFICATION)
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--epochs", help="the same number for every model, to look at the machinery only")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # models this small only get slower with more
    demo = DEMOS[options.task]
    folder, start = options.output_dir or Path(demo.output_dir), time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        bar = tqdm(demo.runs, desc="demo")
        rows = []
        for model, loss in bar:
            bar.set_postfix_str(f"{model} {loss}")
            with redirect_stdout(log):
                rows.append(train(demo, folder, model, loss, options.epochs or demo.epochs[model]))
        if demo.analyzed is not None:
            student = rows[demo.analyzed]["folder"]
            report = student / FOLDER  # which a push of the student takes along
            with redirect_stdout(log):
                analyze.main(
                    ["--teacher", str(rows[0]["folder"]), "--student", str(student), "--output_dir", str(report)]
                )
    table = as_markdown(demo, rows)
    (folder / "demo.md").write_text(f"{table}\n\n{demo.caution}\n", encoding="utf-8")
    draw(demo, rows, folder / "demo.png")
    print(f"\n{table}\n\n{demo.caution}")
    print(f"{time.perf_counter() - start:.0f} s; the table is in {folder}/demo.md, the picture in {folder}/demo.png")
    if demo.analyzed is not None:
        print(f"What the teacher predicts, and what a student did not learn of it: {report / PAGE}")


def train(demo: Demo, folder: Path, model: str, loss: str, epochs: str) -> dict[str, object]:
    """Train one model with `distill.py`, measure it with `evaluate.py`; returns its row of the table."""
    output, teacher = folder / f"{model}-{loss}", folder / "-".join(demo.runs[0])
    # after a part of an epoch (--epochs 0.1) the teacher is a weak one
    source = [] if loss == "ce" else ["--teacher", str(teacher), "--allow_weak_teacher", "true"]
    arguments = ["--student", str(HERE / model), "--loss", loss, "--num_train_epochs", epochs, *source]
    arguments += [*SETTINGS.split(), *demo.settings.split(), "--task", demo.task]
    metrics = distill.main([*arguments, "--output_dir", str(output)])
    against = [] if output == teacher else ["--teacher", str(teacher)]
    measured = evaluate.main(["--model", str(output), *against])["model"]
    return {"model": model, "loss": loss, "folder": output, "ms_per_step": metrics["ms_per_step"], **measured}


def as_markdown(demo: Demo, rows: Sequence[dict]) -> str:
    """The table."""
    words = WORDINGS[demo.task]
    lines = [
        f"| model | loss | {words.columns[0][0]} | agreement with the teacher, % | parameters | ms a step |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        agreement = f"{100 * r['agreement']:.2f}" if "agreement" in r else "-"
        lines.append(
            f"| {r['model']} | {r['loss']} | {100 * r[words.judged]:.2f} | {agreement} "
            f"| {r['parameters']:,} | {r['ms_per_step']:.1f} |"
        )
    return "\n".join(lines)


def draw(demo: Demo, rows: Sequence[dict], path: Path) -> None:
    """The picture: how good every model is and how often it agrees, and a picture of one of the runs."""
    run, file = demo.shown
    shown, judged = Image.open(rows[run]["folder"] / file), WORDINGS[demo.task].judged
    with style():
        figure = Figure(figsize=(11, 4 + 11 * shown.height / shown.width), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=[4, 11 * shown.height / shown.width])
        for shift, key in ((-0.2, judged), (0.2, "agreement")):
            places = [place for place, r in enumerate(rows) if key in r]
            heights = [100 * rows[x][key] for x in places]
            bars = above.bar([x + shift for x in places], heights, 0.38, label=JUDGED[key])
            above.bar_label(bars, fmt="%.1f", fontsize=7)
        above.set_xticks(range(len(rows)), [f"{r['model']}\n{r['loss']}" for r in rows])
        lowest = min(100 * r[key] for r in rows for key in (judged, "agreement") if key in r)
        above.set(ylim=(max(0, lowest - 3), 102), ylabel="% of the test split (axis cut)", title=demo.caution)
        above.legend(loc="upper center", ncols=2)
        below.imshow(shown)
        below.axis("off")
        figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run(main)
