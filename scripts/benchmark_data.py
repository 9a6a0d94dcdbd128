"""Measure how many images a second one core reads and augments, beside torchvision's pipeline and timm's.

    python scripts/benchmark_data.py

All three do the same to the same photographs, JPEG files in memory: random resized crop to 224 x 224, flip, mean and
std, batches of 64, without workers and with one thread, whose own time is taken. Every round runs all of them once, in
random order; a ratio is taken to torchvision's pipeline of the same round. The photographs are scikit-learn's two, cut
to the size of ImageNet's, and beside each other as one of the size that a camera takes.
"""

import argparse
import csv
import io
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from sklearn.datasets import load_sample_images
from timm.data import create_loader
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from tqdm import tqdm
from transformers import ViTImageProcessor

from hf_gdkd.data.datasets import Augmented, collate
from hf_gdkd.data.views import TrainTransform, View, normalized
from hf_gdkd.scripts.benchmark_losses import provenance, quantiles

PHOTOGRAPHS = {"500 x 375": ((500, 375), 1), "2560 x 1708": ((640, 427), 4)}  # size of a tile, tiles a side
SIZE, BATCH = 224, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLUMNS = "photograph pipeline rounds images_per_second_p50 images_per_second_p20 images_per_second_p80"
COLUMNS += " ratio_p50 ratio_p20 ratio_p80 device hardware threads torch torchvision timm python commit date"
Pipeline = Callable[[], Iterable]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark_data.csv"), help="CSV to write")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of all pipelines for each kind of photograph")
    args = parser.parse_args()

    torch.set_num_threads(1)
    about = provenance("cpu") | {"torchvision": torchvision.__version__, "timm": timm.__version__}
    rows = [row | about for name in PHOTOGRAPHS for row in benchmark(name, args.rounds)]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS.split())
        writer.writeheader()
        writer.writerows(rows)
    print(f"{table(rows)}\n{len(rows)} rows in {args.output}")


def benchmark(photograph: str, rounds: int) -> list[dict]:
    """A row for each pipeline, over photographs of one kind (a key of PHOTOGRAPHS)."""
    files = jpegs(*PHOTOGRAPHS[photograph])
    files = [files[i % len(files)] for i in range(BATCH)]
    pipelines = {"torchvision": torchvision_pipeline(files), "timm": timm_pipeline(files), "hf_gdkd": ours(files)}
    speeds: dict[str, list[float]] = {name: [] for name in pipelines}
    for pipeline in pipelines.values():
        images_per_second(pipeline)  # warms up
    for _ in tqdm(range(rounds), photograph, unit="round"):
        for name in random.sample(list(pipelines), len(pipelines)):
            speeds[name].append(images_per_second(pipelines[name]))
    rows = []
    for name, own in speeds.items():
        ratios = [a / b for a, b in zip(own, speeds["torchvision"], strict=True)]
        row = {"photograph": photograph, "pipeline": name, "rounds": rounds}
        rows.append(row | quantiles("images_per_second", own) | quantiles("ratio", ratios))
    return rows


def images_per_second(pipeline: Pipeline) -> float:
    """Of one pass, by this thread's own time."""
    start = time.thread_time()
    for _ in pipeline():
        pass
    return BATCH / (time.thread_time() - start)


def jpegs(size: tuple[int, int], tiles: int) -> list[bytes]:
    """scikit-learn's photographs, each cut to a size and repeated so many times in both directions, as JPEG files."""
    files = []
    for pixels in load_sample_images().images:
        tile = np.asarray(PILImage.fromarray(pixels).crop((0, 0, *size)))
        image = PILImage.fromarray(np.tile(tile, (tiles, tiles, 1)))
        image.save(file := io.BytesIO(), "JPEG", quality=90)
        files.append(file.getvalue())
    return files


class Files(torch.utils.data.Dataset):
    """Files as a data set of the kind that torchvision and timm read: (image, class) pairs."""

    def __init__(self, files: list[bytes], transform: Callable | None = None) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple:
        return self.transform(PILImage.open(io.BytesIO(self.files[index])).convert("RGB")), 0


def torchvision_pipeline(files: list[bytes]) -> Pipeline:
    """As torchvision's reference script for ImageNet, with its default backend (PIL)."""
    steps = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.ToPureTensor()]
    return lambda: DataLoader(Files(files, v2.Compose(steps)), BATCH, shuffle=True)


def timm_pipeline(files: list[bytes]) -> Pipeline:
    """timm's own loader, which collates uint8 and normalises on the device."""
    options = dict(is_training=True, color_jitter=0.0, num_workers=0, device=torch.device("cpu"))
    loader = create_loader(Files(files), SIZE, BATCH, mean=MEAN, std=STD, persistent_workers=False, **options)
    return lambda: loader


def ours(files: list[bytes]) -> Pipeline:
    """As GDKDTrainer reads a data set, for a student whose teacher sees its pixels."""
    stored = [{"image": {"bytes": file, "path": None}, "labels": 0} for file in files]
    rows = Dataset.from_list(stored, features=Features({"image": Image(), "labels": Value("int64")}))
    processor = ViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=MEAN, image_std=STD)
    transform = TrainTransform(View(processor))

    def read() -> Iterable:
        data = Augmented(rows, transform, seed=0).unnormalized()  # a new one has kept no decoded image
        return (
            normalized(batch, transform.views) for batch in DataLoader(data, BATCH, shuffle=True, collate_fn=collate)
        )

    return read


def table(rows: list[dict]) -> str:
    lines = [f"{'photograph':<12} {'pipeline':<12} {'images/s a core':>26} {'x torchvision':>20}"]
    for r in rows:
        speed, ratio = (
            f"{r[f'{key}_p50']:.{digits}f} ({r[f'{key}_p20']:.{digits}f} .. {r[f'{key}_p80']:.{digits}f})"
            for key, digits in (("images_per_second", 0), ("ratio", 2))
        )
        lines.append(f"{r['photograph']:<12} {r['pipeline']:<12} {speed:>26} {ratio:>20}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
