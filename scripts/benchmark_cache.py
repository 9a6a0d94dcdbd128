"""What a step costs that reads the teacher's logits from a cache, or records them, data loading included.

    OMP_NUM_THREADS=1 python scripts/benchmark_cache.py

The comparison's models (scripts/demo) train on the embedded digits: without a teacher (ce), with a live one, with one
that is recorded, and with a full cache; the loss is gdkd where none is named. Blocks of steps alternate, in random
order within a round, and ratios are taken within a round. On a CPU with one thread it is the processor's time that
counts, so that other work beside it does not.
"""

import argparse
import gc
import random
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback

from hf_gdkd import GDKDConfig, GDKDTrainer
from hf_gdkd.data import Augmented, TrainTransform, View, collate, load_data
from hf_gdkd.data.teacher_cache import TeacherCache
from hf_gdkd.models import load_model
from hf_gdkd.models.loading import load_processor
from hf_gdkd.scripts.benchmark_losses import provenance, quantiles
from hf_gdkd.training.cached_teacher import CachedTeacher
from hf_gdkd.training.teacher import Teacher

DEMO = Path(__file__).parent / "demo"
WARM_UP, STEPS, BATCH = 4, 20, 64
PIXELS = "teacher_pixel_values"
LOSSES = {"ce": "ce", "live": "gdkd", "recorded": "gdkd", "read": "gdkd", "read, kd": "kd"}
RATIOS = {"live / ce": None, "recorded / live": 1.05, "read / ce": 1.05, "read, kd / ce": 1.05}  # the most aimed at


class _Clock(TrainerCallback):
    """Notes the time at the end of the warm-up and at the end of the last step."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step in (WARM_UP, state.max_steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            own_time = not torch.cuda.is_available() and torch.get_num_threads() == 1
            self.marks.append(time.process_time() if own_time else time.perf_counter())


def measure(rounds: int = 10) -> list[dict]:
    """A row a ratio: `ratio`, `bound`, `rounds`, quantiles of the ratio and of the ms a step of its two sides."""
    data = load_data("digits")
    student, teacher = (
        load_model(str(DEMO / name), label_names=data.label_names, init="random") for name in ("cnn", "teacher")
    )
    view = View(load_processor(str(DEMO / "cnn"), init="random"))
    rows = data.train.select(range(BATCH * (WARM_UP + STEPS) // 2))  # an epoch is half a block: two views
    with tempfile.TemporaryDirectory() as folder:

        def block(side: str) -> float:
            """Milliseconds a step."""
            full, cached = side.startswith("read"), side not in ("ce", "live")
            place = Path(folder, "full") if full else Path(tempfile.mkdtemp(dir=folder))
            cache = TeacherCache(place, {}, rows=len(data.train), classes=len(data.label_names), views=2)
            transform = TrainTransform(view, {PIXELS: view} if cached else {}, crop_scale=0.6)
            caches = {PIXELS: cache} if cached else {}
            args = GDKDConfig(
                output_dir=folder, loss=LOSSES[side], max_steps=WARM_UP + STEPS,
                per_device_train_batch_size=BATCH, optim="sgd", report_to="none", save_strategy="no", disable_tqdm=True,
                dataloader_num_workers=0, logging_strategy="no",
            )  # fmt: skip
            sides = {"ce": None, "live": Teacher(teacher)}
            trainer = GDKDTrainer(
                student, sides[side] if side in sides else CachedTeacher(cache, lambda: Teacher(teacher)), args,
                train_dataset=Augmented(rows, transform, seed=0, views=2, caches=caches), data_collator=collate,
                callbacks=[clock := _Clock()],
            )  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            gc.collect()
            trainer.train()
            return (clock.marks[1] - clock.marks[0]) / STEPS * 1e3

        block("read")  # records what the others read
        times: dict[str, list[float]] = {side: [] for side in LOSSES}
        for _ in tqdm(range(rounds), "cache", unit="round", disable=None):
            for side in random.sample(list(times), len(times)):
                times[side].append(block(side))
    found = []
    for name, bound in RATIOS.items():
        one, other = (times[side] for side in name.split(" / "))
        ratios = [a / b for a, b in zip(one, other, strict=True)]
        row = {"ratio": name, "bound": bound or "", "rounds": rounds} | quantiles("ratio", ratios)
        found.append(row | quantiles("ms", one) | quantiles("yardstick_ms", other))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="blocks of each side (default: 10)")
    rounds = parser.parse_args().rounds
    for row in measure(rounds):
        spread = f"{row['ratio_p50']:.3f} ({row['ratio_p20']:.3f} .. {row['ratio_p80']:.3f})"
        print(f"{row['ratio']:<16} {spread}  at most {row['bound'] or '-'}; {row['ms_p50']:.1f} ms a step")
    print(
        ", ".join(f"{key} {value}" for key, value in provenance("cuda" if torch.cuda.is_available() else "cpu").items())
    )


if __name__ == "__main__":
    main()
