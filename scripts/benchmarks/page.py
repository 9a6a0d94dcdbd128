"""BENCHMARKS.md, from the CSV files of the benchmarks: it is written anew, and shows what has been measured."""

from __future__ import annotations

from pathlib import Path

from .growth import SUBJECTS, draw
from .rows import LIBRARIES, read

GROWTH_TEXT = (
    "The loss gdkd beside plain KD as batch, classes or k grow (else 64, 1000 and 5), and a step with gdkd beside "
    "plain fine-tuning as the image grows."
)
# Groups of rows, in their order on the page: title, and what a reader has to know.
CPU = {
    "steps": (
        "Training steps",
        "Steps of GDKDTrainer beside other ways to train the same two vision transformers of timm (6 and 12 blocks) on "
        "one batch of 32 x 32 images: a loop written by hand, `LogitDistillationTask` of timm in its training loop, a "
        "bare Trainer of transformers, and plain fine-tuning (`ce`). `cached` is gdkd with the teacher's logits at "
        "hand. The bars are 1.03 for the loop written by hand and 1.00 for timm's, at 200 ms a step.",
    ),
    "losses": (
        "Losses",
        "Forward and backward of the losses alone beside plain KD, classes in dimension 1, and the most memory that "
        "they hold beyond their input.",
    ),
}
GPU = {
    "steps": (
        "Training steps",
        "Images a second of optimizer steps on ViT-B/16 as the teacher, batch 256 at 224 x 224, bfloat16 autocast, "
        "random weights, one synthetic batch on the card: no data is read. `ce` is plain fine-tuning, `cached` is gdkd "
        "with the teacher's logits at hand, `bare` are the teacher's forward and the student's forward and backward "
        "pass alone.",
    ),
    "share of the bare compiled passes": (
        "Share of the bare compiled passes",
        "The time of the two bare compiled passes over the time of a whole step: what is missing to 1 is loss, "
        "optimizer, clipping, trainer, and what is not compiled.",
    ),
    "NaN guard": (
        "The NaN guard",
        "A step with the check of losses and gradients, beside one without it, by turns.",
    ),
    "teacher's passes": (
        "The teacher's passes over micro-batches",
        "A step whose teacher runs once over its four micro-batches of 64 images, beside one where it runs four times.",
    ),
    "losses": (
        "Losses",
        "The GPU's time for forward and backward of the loss alone; classes are in dimension 1.",
    ),
    "losses, started one by one": (
        "Losses, started one by one",
        "The same where the GPU has nothing else to do and waits for each kernel to be started. In training it has.",
    ),
    "losses, share of the copy's bandwidth": (
        "Losses, as a share of the memory's bandwidth",
        "The least traffic is both logits read and the gradient written, each once. Its speed is compared with that of "
        "a copy of 2 GB on this card.",
    ),
    "losses, share of the nominal bandwidth": (
        "Losses, as a share of the nominal bandwidth",
        "The same, beside the data sheet.",
    ),
    "CNN teacher": ("A CNN teacher's memory format", "Its forward pass at batch 256."),
    "memory": ("The card's memory", "Read and written by a copy on the card."),
}


def write(page: Path, folder: Path) -> None:
    """Write the page of the figures in a folder."""
    parts = ["# Benchmarks\n\nWritten by `make bench` and `make gpu`; the figures are also in `benchmarks/`, as CSV.\n"]
    parts.append("A figure is a median, with the 20th and 80th percentile behind it.\n")
    for title, groups, path, missing in (
        ("On a CPU: ratios", CPU, folder / "cpu.csv", "`make bench`"),
        ("On a GPU", GPU, folder / "gpu.csv", "`make gpu` on a machine with a GPU"),
    ):
        parts.append(f"## {title}\n")
        rows = read(path)
        parts += [about(rows), *sections(rows, groups)] if rows else [f"Not measured: {missing} does it.\n"]
        if {f"growth with {what}" for what in SUBJECTS} <= {row["group"] for row in rows}:
            draw(rows, folder / "growth.png")
            parts.append(f"### Growth\n\n{GROWTH_TEXT}\n\n![Ratios]({folder.name}/growth.png)\n")
    parts += tests(folder / "gpu_tests.log")
    page.write_text("\n".join(parts), encoding="utf-8")


def about(rows: list[dict[str, str]]) -> str:
    """On what, with what, when."""
    row = rows[0]
    versions = ", ".join(f"{name} {row[name]}" for name in LIBRARIES)
    return (
        f"{row['device']}, {row['threads']} CPU thread{'s' if row['threads'] != '1' else ''}; {versions}, Python "
        f"{row['python']}; commit {row['commit']}, {row['date']}.\n"
    )


def sections(rows: list[dict[str, str]], groups: dict[str, tuple[str, str]]) -> list[str]:
    """A table for each group that was measured."""
    parts = []
    for group, (title, text) in groups.items():
        own = [row for row in rows if row["group"] == group]
        if own:
            parts += [f"### {title}\n\n{text}\n", table(own)]
    return parts


def table(rows: list[dict[str, str]]) -> str:
    """The rows as Markdown; columns that none of them fills are left out."""
    lines = []
    for row in rows:
        ratio = f"{figure(row, 'ratio_')} x {row['yardstick']}" if row["yardstick"] else ""
        lines.append([row["name"], row["setting"], f"{figure(row)} {row['unit']}", ratio, row["peak_mb"]])
    head = ["what", "setting", "median (20th to 80th percentile)", "ratio", "peak MB"]
    kept = [i for i in range(len(head)) if any(line[i] for line in lines)]
    cells = [[line[i] for i in kept] for line in (head, ["---"] * len(head), *lines)]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def figure(row: dict[str, str], prefix: str = "") -> str:
    p50, p20, p80 = (f"{float(row[f'{prefix}{p}']):.3g}" for p in ("p50", "p20", "p80"))
    return f"{p50} ({p20} to {p80})"


def tests(log: Path) -> list[str]:
    """What the tests on the GPU gave."""
    if not log.is_file():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    results = [line for line in lines if any(word in line for word in ("PASSED", "FAILED", "ERROR", "SKIPPED"))]
    last = lines[-1:] if lines and lines[-1].startswith("=") else ["The run was cut off."]
    return ["### Tests on the GPU\n", "```text\n" + "\n".join([*results, *last]) + "\n```\n"]
