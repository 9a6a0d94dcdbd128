"""Small pictures, as files and as a parquet data set."""

import io
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

ROOT = Path(__file__).parents[2]
ROWS = 23  # in shards of 5, 5, 5, 5 and 3


def encode(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def stored(data, path=None):
    return {"bytes": data, "path": path}


def colours(mode="RGB", size=(12, 9)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return PILImage.fromarray(pixels).convert(mode)


def picture(seed, size=(30, 25)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return PILImage.fromarray(pixels)


def parquet(folder, rows=ROWS, shard=5, bad=(), features=None, test=4):
    """Row i has class i; the images of the rows `bad` cannot be read, by number over both splits."""
    folder.mkdir()
    features = features or {"image": Image(), "label": ClassLabel(names=[f"class {i}" for i in range(rows)])}
    images = [b"" if i in bad else encode(picture(i, (12, 12)), "JPEG") for i in range(rows + test)]
    for split, numbers in (("train", range(rows)), ("test", range(rows, rows + test))):
        starts = range(numbers.start, numbers.stop, shard)
        for k, start in enumerate(starts):
            part = numbers[start - numbers.start :][:shard]
            columns = {"image": [stored(images[i], f"{i}.jpg") for i in part], "label": [i % rows for i in part]}
            file = folder / f"{split}-{k:05}-of-{len(starts):05}.parquet"
            Dataset.from_dict(columns, Features(features)).to_parquet(file)
    return str(folder)


def words(folder, output, *more):
    """The arguments of distill.py that train a small ViT on a folder of pictures."""
    return [
        *("--dataset", folder, "--loss", "ce", "--student", str(ROOT / "scripts/demo/vit"), "--student_init", "random"),
        *("--num_train_epochs", "2", "--per_device_train_batch_size", "16", "--save_strategy", "no", "--use_cpu"),
        *("--disable_tqdm", "true", "--report_to", "none", "--output_dir", str(output), *more),
    ]  # fmt: skip
