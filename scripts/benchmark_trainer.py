"""What a step of GDKDTrainer costs beside a hand-written loop and beside a bare Trainer with plain KD.

    python scripts/benchmark_trainer.py

Both sides of a comparison do the same work: the same vision transformers, teacher forward, loss, fused AdamW, linear
schedule and gradient clipping, on one batch that is already collated on the device, so that no data loading hides a
difference. Blocks of steps alternate, in random order within a pair, and a ratio is taken within a pair. Timed is
from the end of the warm-up's last step to the end of the block's: no set-up, saving or evaluation. Logging is off or
every 10 steps, for both sides; only GDKDTrainer logs the parts. `--quick`: two smaller sizes, fewer pairs. On a machine
that does other work, OMP_NUM_THREADS=1: threads that wait for each other measure the other work.
"""

import argparse
import csv
import gc
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import accelerate
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, ViTConfig
from transformers import ViTForImageClassification as ViT

from hf_gdkd import GDKDConfig, GDKDTrainer
from hf_gdkd.losses import build_loss
from hf_gdkd.scripts.benchmark_losses import provenance, quantiles

# Name, width and depth of the student (the teacher is twice as deep), least ms of a hand-written step (the batch
# doubles until then), steps of a timed block (a multiple of 10, so that all blocks log equally often).
SIZES = [("tiny", 64, 1, 3, 50), ("middle", 128, 3, 30, 10), ("large", 192, 6, 210, 10)]
WARM_UP = 3  # steps: the first one makes the optimizer's state
MAX_SECONDS = 90  # a size, comparison and way of logging: fewer pairs, but at least 5, when they would take longer
LEARNING_RATE, MAX_NORM = 1e-5, 1.0
COLUMNS = "size yardstick loss logging_steps batch width depth steps pairs ms_p50 ms_p20 ms_p80 yardstick_ms_p50"
COLUMNS += " yardstick_ms_p20 yardstick_ms_p80 ratio_p50 ratio_p20 ratio_p80 bound device hardware threads torch"
COLUMNS += " transformers accelerate python commit date"
Batch = dict[str, Tensor]


class BareTrainer(Trainer):
    """Plain KD as most people write it: the yardstick."""

    teacher: nn.Module

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(inputs["pixel_values"]).logits
        with torch.no_grad():
            teacher_logits = self.teacher(inputs["pixel_values"]).logits
        kd = F.kl_div(logits.log_softmax(-1), teacher_logits.softmax(-1), reduction="batchmean")
        return 0.5 * F.cross_entropy(logits, inputs["labels"]) + 0.5 * kd


class Clock(TrainerCallback):
    """Notes the time at the end of the warm-up and at the end of the last step."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step in (WARM_UP, state.max_steps):
            self.marks.append(now())


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def hand_written(student: nn.Module, teacher: nn.Module, batch: Batch, steps: int, logging_steps: int) -> float:
    """Milliseconds a step of a plain loop with loss gdkd."""
    student.train()
    gdkd = build_loss("gdkd")
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / (WARM_UP + steps))
    total = torch.zeros((), device=batch["labels"].device)
    for step in range(1, WARM_UP + steps + 1):
        logits = student(batch["pixel_values"]).logits
        with torch.no_grad():
            teacher_logits = teacher(batch["pixel_values"]).logits
        loss = F.cross_entropy(logits, batch["labels"]) + gdkd(logits, teacher_logits)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(student.parameters(), MAX_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        total += loss.detach()
        if step == WARM_UP:
            start = now()
        if logging_steps and step % logging_steps == 0:
            total *= 0 * (total.item() + norm.item())
    return (now() - start) / steps * 1e3


def by_trainer(
    loss: str | None, student: nn.Module, teacher: nn.Module, batch: Batch, steps: int, logging_steps: int
) -> float:
    """Milliseconds a step of GDKDTrainer with this loss; of the bare Trainer when it is None."""
    with tempfile.TemporaryDirectory() as folder:
        options = dict(
            output_dir=folder, max_steps=WARM_UP + steps, per_device_train_batch_size=1, learning_rate=LEARNING_RATE,
            max_grad_norm=MAX_NORM, optim="adamw_torch_fused", lr_scheduler_type="linear", save_strategy="no",
            logging_strategy="steps" if logging_steps else "no", logging_steps=logging_steps or 1, report_to="none",
            eval_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False,
        )  # fmt: skip
        clock = Clock()
        # One item of the data set is a whole batch.
        shared = dict(train_dataset=[batch] * options["max_steps"], data_collator=lambda items: items[0])
        if loss is None:
            trainer = BareTrainer(student, TrainingArguments(**options), callbacks=[clock], **shared)
            trainer.teacher = teacher
        else:
            trainer = GDKDTrainer(student, teacher, GDKDConfig(loss=loss, **options), callbacks=[clock], **shared)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    start, end = clock.marks
    return (end - start) / steps * 1e3


# Yardstick, its loss, the most that GDKDTrainer may take of its time, and the sizes for which that holds.
COMPARISONS: list[tuple[str, str, Callable[..., float], float, set[str]]] = [
    ("hand-written loop", "gdkd", hand_written, 1.05, {"large"}),
    ("bare Trainer", "kd", partial(by_trainer, None), 1.03, {"tiny", "middle", "large"}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark_trainer.csv"), help="CSV to write")
    parser.add_argument("--quick", action="store_true", help="two smaller sizes, few pairs")
    parser.add_argument("--pairs", type=int, help="pairs of blocks of a comparison (default: 40, quick 10)")
    names = [size[0] for size in SIZES]
    parser.add_argument("--sizes", nargs="+", choices=names, help="default: all, quick: tiny and middle")
    args = parser.parse_args()

    transformers.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = provenance(device) | {"transformers": transformers.__version__, "accelerate": accelerate.__version__}
    rows = []
    sizes = args.sizes or (names[:2] if args.quick else names)
    for size in (size for size in SIZES if size[0] in sizes):
        rows += [row | about for row in benchmark(*size, args.pairs or (10 if args.quick else 40), device)]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS.split())
        writer.writeheader()
        writer.writerows(rows)
    print(f"{table(rows)}\n{len(rows)} rows in {args.output}")


def benchmark(name: str, width: int, depth: int, least_ms: float, steps: int, pairs: int, device: str) -> list[dict]:
    """A row for each comparison, with and without logging."""
    torch.manual_seed(0)
    shape = dict(hidden_size=width, intermediate_size=4 * width, num_attention_heads=width // 32)
    shape |= dict(image_size=32, patch_size=4, num_labels=100)
    student, teacher = (ViT(ViTConfig(num_hidden_layers=d, **shape)).to(device) for d in (depth, 2 * depth))
    teacher.requires_grad_(False).eval()
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(100, (8,))
    while True:
        batch = {"pixel_values": images.to(device), "labels": labels.to(device)}
        if min(hand_written(student, teacher, batch, 3, 0) for _ in range(3)) >= least_ms:
            break
        images, labels = torch.cat([images, images]), torch.cat([labels, labels])
    rows = []
    for logging_steps in (0, 10):
        for yardstick, loss, timed, bound, sizes in COMPARISONS:
            sides, times = {"ms": partial(by_trainer, loss), "yardstick_ms": timed}, {"ms": [], "yardstick_ms": []}
            end = time.perf_counter() + MAX_SECONDS
            for i in tqdm(range(pairs), f"{name}, {yardstick}, log {logging_steps or 'off'}", unit="pair"):
                if i >= 5 and time.perf_counter() > end:
                    break
                for side in random.sample(list(sides), 2):
                    gc.collect()
                    times[side].append(sides[side](student, teacher, batch, steps, logging_steps))
            ratios = [own / other for own, other in zip(*times.values(), strict=True)]
            row = {"size": name, "yardstick": yardstick, "loss": loss, "logging_steps": logging_steps, "steps": steps}
            row |= {"batch": len(labels), "width": width, "depth": depth, "pairs": len(ratios)}
            row |= quantiles("ms", times["ms"]) | quantiles("yardstick_ms", times["yardstick_ms"])
            rows.append(row | quantiles("ratio", ratios) | {"bound": bound if name in sizes else ""})
    return rows


def table(rows: list[dict]) -> str:
    lines = [f"{'size':<7} {'yardstick':<17} {'log':>3} {'batch':>5} {'ms':>8} {'its':>8} {'ratio':>23} {'bound':>5}"]
    for r in rows:
        ratio = f"{r['ratio_p50']:.3f} ({r['ratio_p20']:.3f} .. {r['ratio_p80']:.3f})"
        left = f"{r['size']:<7} {r['yardstick']:<17} {r['logging_steps'] or 'off':>3} {r['batch']:>5}"
        lines.append(f"{left} {r['ms_p50']:>8.2f} {r['yardstick_ms_p50']:>8.2f} {ratio:>23} {r['bound']:>5}")
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*CUDA.*")
    main()
