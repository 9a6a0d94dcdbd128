"""The main job on embedded real data: a teacher, and two students with four losses each.

    python scripts/demo.py

Trains a residual network on scikit-learn's scanned digits, distils it into a small vision transformer and a smaller
residual network, and writes a table (demo.md) and a picture (demo.png) to runs/demo.
"""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from tqdm.auto import tqdm

from hf_gdkd.commands.running import run
from hf_gdkd.scripts import distill, evaluate
from hf_gdkd.training.run_files import PICTURE

HERE = Path(os.path.relpath(Path(__file__).parent / "demo"))
EPOCHS = {"teacher": "15", "vit": "25", "cnn": "20"}
LOSSES = ("ce", "kd", "gdkd", "gdkd3")
RUNS = [("teacher", "ce"), *((student, loss) for student in ("vit", "cnn") for loss in LOSSES)]
SETTINGS = (
    "--student_init random --dataset digits --learning_rate 3e-3 --save_strategy no --disable_tqdm true --overwrite"
)
CAUTION = "One seed on 1,797 digits: this proves the machinery, not the ranking of the losses."


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate, show."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", default="runs/demo", type=Path)
    parser.add_argument("--epochs", help="the same number for every model, to look at the machinery only")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # models this small only get slower with more
    folder, start = options.output_dir, time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        bar = tqdm(RUNS, desc="demo")
        rows = []
        for model, loss in bar:
            bar.set_postfix_str(f"{model} {loss}")
            with redirect_stdout(log):
                rows.append(train(folder, model, loss, options.epochs or EPOCHS[model]))
    table = as_markdown(rows)
    (folder / "demo.md").write_text(f"{table}\n\n{CAUTION}\n", encoding="utf-8")
    draw(rows, folder / "demo.png")
    print(f"\n{table}\n\n{CAUTION}")
    print(f"{time.perf_counter() - start:.0f} s; the table is in {folder}/demo.md, the picture in {folder}/demo.png")


def train(folder: Path, model: str, loss: str, epochs: str) -> dict[str, object]:
    """Train one model with `distill.py`, measure it with `evaluate.py`; returns its row of the table."""
    output, teacher = folder / f"{model}-{loss}", folder / "teacher-ce"
    source = [] if loss == "ce" else ["--teacher", str(teacher)]
    arguments = ["--student", str(HERE / model), "--loss", loss, "--num_train_epochs", epochs, *source]
    metrics = distill.main([*arguments, *SETTINGS.split(), "--output_dir", str(output)])
    against = [] if output == teacher else ["--teacher", str(teacher)]
    measured = evaluate.main(["--model", str(output), "--dataset", "digits", *against])["model"]
    return {"model": model, "loss": loss, "folder": output, "ms_per_step": metrics["ms_per_step"], **measured}


def as_markdown(rows: Sequence[dict]) -> str:
    """The table."""
    lines = [
        "| model | loss | top-1, % | agreement with the teacher, % | parameters | ms a step |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        agreement = f"{100 * r['agreement']:.2f}" if "agreement" in r else "-"
        lines.append(
            f"| {r['model']} | {r['loss']} | {100 * r['top1']:.2f} | {agreement} "
            f"| {r['parameters']:,} | {r['ms_per_step']:.1f} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[dict], path: Path) -> None:
    """The picture: accuracy and agreement of every model, and how the vision transformer learned with gdkd3."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    above, below = figure.subplots(2, 1)
    for shift, key, label in ((-0.2, "top1", "top-1 accuracy"), (0.2, "agreement", "agreement with the teacher")):
        places = [place for place, r in enumerate(rows) if key in r]
        bars = above.bar([x + shift for x in places], [100 * rows[x][key] for x in places], 0.38, label=label)
        above.bar_label(bars, fmt="%.1f", fontsize=7)
    above.set_xticks(range(len(rows)), [f"{r['model']}\n{r['loss']}" for r in rows])
    lowest = min(100 * r[key] for r in rows for key in ("top1", "agreement") if key in r)
    above.set(ylim=(max(0, lowest - 3), 102), ylabel="% of 360 test images (axis cut)", title=CAUTION)
    above.legend(loc="upper center", ncols=2)
    below.imshow(Image.open(rows[4]["folder"] / PICTURE))
    below.axis("off")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run(main)
