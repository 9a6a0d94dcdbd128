"""Measure time and memory of the losses beside plain KD: forward and backward, eager and compiled.

    python scripts/benchmark_losses.py

Every round runs all losses once, in random order, so that a busy machine slows all alike; a ratio is taken
against plain KD of the same round and mode. "ragged" is compiled, after half a batch went through the same compiled
losses, and "classes" after half the classes. `--quick` takes the two smaller shapes and fewer rounds. Four numbers are
maps with their classes in dimension 1. On a shared machine use `--threads 1`: time is then the thread's own.
"""

import argparse
import csv
import datetime
import platform
import random
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from hf_gdkd.evaluation.peak_memory import peak_mb_during
from hf_gdkd.losses import LOSSES, build_loss
from hf_gdkd.scripts.benchmarks.rows import cpu_name

SHAPES = [(256, 1000), (64, 100), (128, 21841), (65536, 19), (4, 19, 128, 256)]
MODES = ["eager", "compiled", "ragged", "classes"]
MAX_SECONDS = 20  # a shape and mode: fewer rounds when they would take longer
COLUMNS = "loss mode batch classes dtype rounds ms_p50 ms_p20 ms_p80 ratio_p50 ratio_p20 ratio_p80 peak_mb"
COLUMNS = [*COLUMNS.split(), "device", "hardware", "threads", "torch", "python", "commit", "date"]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain_kd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0, dim: int = -1) -> Tensor:
    """Knowledge distillation as most people write it: the yardstick."""
    log_q, p = (student / temperature).log_softmax(dim), (teacher / temperature).softmax(dim)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark_losses.csv"), help="CSV to write")
    parser.add_argument("--quick", action="store_true", help="two small shapes, few rounds")
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES), help="losses to time")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES, help="how the losses run")
    parser.add_argument("--rounds", type=int, help="rounds of all losses (default: 200, quick 30)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = SHAPES[:2] if args.quick else SHAPES
    rounds = args.rounds or (30 if args.quick else 200)
    about = provenance(device)
    rows = []
    with tqdm(total=len(shapes) * len(args.modes) * rounds, unit="round") as progress:
        for shape in shapes:
            for mode in args.modes:
                progress.set_description(f"{samples(shape)} x {shape[1]} {mode}")
                rows += [row | about for row in benchmark(shape, mode, args.losses, rounds, device, progress)]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))
    print(f"{len(rows)} rows in {args.output}")


def benchmark(
    shape: tuple[int, ...], mode: str, names: list[str], rounds: int, device: str, progress: tqdm
) -> list[dict]:
    """A row for plain KD and for each loss, of one shape, whose classes are in dimension 1, and one mode."""
    student, teacher, labels = sample(shape, device)
    losses: dict[str, Loss] = {"plain_kd": partial(plain_kd, dim=1)}
    losses |= {name: build_loss(name, dim=1) for name in names}
    if mode != "eager":
        torch.compiler.reset()
        losses = {name: torch.compile(loss, fullgraph=True) for name, loss in losses.items()}
    if mode in ("ragged", "classes"):
        earlier = (shape[0] // 2 + 1, *shape[1:]) if mode == "ragged" else (shape[0], shape[1] // 2 + 1, *shape[2:])
        for loss in losses.values():
            milliseconds(loss, *sample(earlier, device))
    peaks = {name: peak_mb(loss, student, teacher, labels) for name, loss in losses.items()}  # also warms up
    slowest = sum(milliseconds(loss, student, teacher, labels) for loss in losses.values())
    fewer = max(5, min(rounds, int(MAX_SECONDS * 1e3 / slowest)))
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(fewer):
        for name in random.sample(list(losses), len(losses)):
            times[name].append(milliseconds(losses[name], student, teacher, labels))
        progress.update()
    progress.update(rounds - fewer)
    rows = []
    for name, ms in times.items():
        ratios = [own / kd for own, kd in zip(ms, times["plain_kd"], strict=True)]
        row = {"loss": name, "mode": mode, "batch": samples(shape), "classes": shape[1], "dtype": "float32"}
        row |= {"rounds": fewer} | quantiles("ms", ms) | quantiles("ratio", ratios)
        rows.append(row | {"peak_mb": round(peaks[name], 2)})
    return rows


def sample(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher of a shape, and labels; the classes are in dimension 1."""
    g = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, *shape, generator=g)).to(device)
    return student, teacher, torch.randint(shape[1], (shape[0], *shape[2:]), generator=g).to(device)


def samples(shape: tuple[int, ...]) -> str:
    """What a shape holds beside its classes: 256, or 4 x 128 x 256."""
    return " x ".join(map(str, (shape[0], *shape[2:])))


def milliseconds(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> float:
    """Time of one forward and backward, to the student's gradient: of one thread its own, else wall time."""
    leaf = student.detach().requires_grad_()
    alone = torch.get_num_threads() == 1 and not leaf.is_cuda
    clock = time.thread_time if alone else time.perf_counter
    if leaf.is_cuda:
        torch.cuda.synchronize()
    start = clock()
    loss(leaf, teacher, labels).backward()
    if leaf.is_cuda:
        torch.cuda.synchronize()
    return (clock() - start) * 1e3


def peak_mb(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> float:
    """Most MB (1e6 bytes) that one forward and backward holds beyond its input."""
    for _ in range(3):
        milliseconds(loss, student, teacher, labels)
    return peak_mb_during(lambda: milliseconds(loss, student, teacher, labels), student.device)


def quantiles(name: str, values: list[float]) -> dict[str, float]:
    low, *_, high = statistics.quantiles(values, n=5)
    spread = {"p50": statistics.median(values), "p20": low, "p80": high}
    return {f"{name}_{key}": round(value, 4) for key, value in spread.items()}


def provenance(device: str) -> dict[str, str | int]:
    """Hardware, versions and commit, the same for all rows."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {
        "device": device,
        "hardware": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": git.stdout.strip() or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def table(rows: list[dict]) -> str:
    lines = [f"{'loss':<9} {'mode':<9} {'shape':>18} {'ms (p20 .. p80)':>28} {'x plain KD':>20} {'peak MB':>9}"]
    for r in rows:
        ms = f"{r['ms_p50']:.3f} ({r['ms_p20']:.3f} .. {r['ms_p80']:.3f})"
        ratio = f"{r['ratio_p50']:.2f} ({r['ratio_p20']:.2f} .. {r['ratio_p80']:.2f})"
        shape = f"{r['batch']} x {r['classes']}"
        lines.append(f"{r['loss']:<9} {r['mode']:<9} {shape:>18} {ms:>28} {ratio:>20} {r['peak_mb']:>9.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*CUDA.*")
    main()
