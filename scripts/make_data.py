"""Local data sets for comparisons without the Hub: parquet folders that `--dataset` takes.

    python scripts/make_data.py fashion-mnist /usr/share/datasets/fashion-mnist runs/data/fashion-mnist
    python scripts/make_data.py glyphs /usr/share/fonts runs/data/glyphs
    python scripts/make_data.py fashion-scenes /usr/share/datasets/fashion-mnist runs/data/fashion-scenes

The first reads the gzipped idx files of Fashion-MNIST (Debian: dataset-fashion-mnist), or copies a data set of the Hub
(zalando-datasets/fashion_mnist). The second draws the 62 digits and letters, 28 x 28 grey, from every TrueType and
OpenType font in a folder (Debian: fonts-*); fonts whose family names begin with the same word are in one split. The
third composes scenes of 64 x 64 pixels with 3 to 5 garments of Fashion-MNIST and a mask, for semantic segmentation; no
garment is in two splits. All leave an about.md of what they were made of.
"""

import gzip
import hashlib
import json
import string
import subprocess
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, load_dataset
from datasets import Image as ImageFeature
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from hf_gdkd.data.digit_scenes import scenes

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
GLYPHS = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)
XIAO = "Fashion-MNIST (Xiao et al., arXiv 1708.07747)"
SIZE, LARGEST = 28, 24  # pixels: of an image, and of the font's largest glyph in it
FACES = 4  # of one family at most, so that none outweighs the others
DISTINCT = 36  # glyphs that must look different: capitals in the place of small letters pass, dingbats do not
SCENES = {"train": 1500, "validation": 300, "test": 500}
Splits = dict[str, tuple[list[Image.Image], list[int]]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("fashion-mnist", "glyphs", "fashion-scenes"))
    parser.add_argument("source", type=Path, help="folder of the idx files, an id on the Hub, or a folder of fonts")
    parser.add_argument("output", type=Path, help="folder to write")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.kind == "fashion-scenes":
        classes = ("background", *FASHION)
        splits, about = fashion_scenes(options.source)
        (options.output / "id2label.json").write_text(json.dumps(dict(enumerate(classes))), encoding="utf-8")
    else:
        classes = FASHION if options.kind == "fashion-mnist" else GLYPHS
        pictures, about = (fashion_mnist if options.kind == "fashion-mnist" else glyphs)(options.source)
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(classes))})
        splits = {
            split: Dataset.from_dict({"image": images, "label": labels}, features)
            for split, (images, labels) in pictures.items()
        }
    for split, rows in splits.items():
        rows.to_parquet(options.output / f"{split}.parquet")
    sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in splits.items())
    (options.output / "about.md").write_text(f"{len(classes)} classes; {sizes}. {about}\n", encoding="utf-8")
    print(f"{options.output}: {sizes}")


def fashion_mnist(folder: Path) -> tuple[Splits, str]:
    """The splits train and test of the four idx files in a folder or of a data set on the Hub, and what they are."""
    if not folder.is_dir():
        data = load_dataset(str(folder))
        return {split: (rows["image"][:], rows["label"][:]) for split, rows in data.items()}, f"From the Hub: {folder}."
    splits = {split: ([Image.fromarray(p) for p in pixels], labels) for split, (pixels, labels) in read_idx(folder)}
    return splits, f"{XIAO}, from {packages([folder])}."


def read_idx(folder: Path) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """The pixels (N, 28, 28) and labels (N,) of the splits."""

    def read(name: str, header: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=header)

    for split, name in (("train", "train"), ("test", "t10k")):
        pixels = read(f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, SIZE, SIZE)
        yield split, (pixels, read(f"{name}-labels-idx1-ubyte.gz", 8))


def fashion_scenes(folder: Path) -> tuple[dict[str, Dataset], str]:
    """Scenes of garments: the splits train and validation of the training images, test of the others; what they are."""
    images = dict(read_idx(folder))
    order = np.random.default_rng(0).permutation(len(images["train"][0]))
    half = len(order) * 3 // 4
    parts = {"train": ("train", order[:half]), "validation": ("train", order[half:]), "test": ("test", slice(None))}
    splits = {
        split: scenes(
            *(array[rows] for array in images[source]),
            count=SCENES[split],
            seed=seed,
            **{"objects": (3, 5), "size": 64, "sides": (20, 28), "filled": True},
        )
        for seed, (split, (source, rows)) in enumerate(parts.items())
    }
    return splits, f"Scenes of 64 x 64 pixels of {XIAO}, from {packages([folder])}."


def glyphs(folder: Path) -> tuple[Splits, str]:
    """The splits train, validation and test of the fonts in a folder, and the fonts that they were drawn from."""
    families = defaultdict(list)
    for path in sorted(findSystemFonts(str(folder))):
        try:
            font = FT2Font(path)
        except (OSError, RuntimeError):  # no outlines
            continue
        if font.get_charmap().keys() >= {ord(glyph) for glyph in GLYPHS}:
            families[font.family_name.split()[0].lower()].append(path)
    splits: Splits = {"train": ([], []), "validation": ([], []), "test": ([], [])}
    drawn = defaultdict(list)
    for family, paths in tqdm(sorted(families.items()), desc="drawing"):
        place = int(hashlib.sha256(family.encode()).hexdigest(), 16) % 20  # the same wherever the font is installed
        split = "test" if place < 5 else "validation" if place < 8 else "train"
        for path in paths[:: -(-len(paths) // FACES)]:
            images = draw(path)
            if len({image.tobytes() for image in images}) >= DISTINCT and all(image.getbbox() for image in images):
                splits[split][0].extend(images)
                splits[split][1].extend(range(len(GLYPHS)))
                drawn[split].append(path)
    fonts = ", ".join(f"{len(paths)} {split}" for split, paths in drawn.items())
    return splits, f"Drawn from fonts ({fonts}) of {packages([path for each in drawn.values() for path in each])}."


def draw(path: str) -> list[Image.Image]:
    """Every glyph of a font at one scale, each in the middle of its image."""
    boxes = [ImageFont.truetype(path, 100).getbbox(glyph) for glyph in GLYPHS]
    largest = max(max(right - left, bottom - top) for left, top, right, bottom in boxes)
    font, images = ImageFont.truetype(path, 100 * LARGEST / max(largest, 1)), []
    for glyph in GLYPHS:
        left, top, right, bottom = font.getbbox(glyph)
        images.append(Image.new("L", (SIZE, SIZE)))
        ImageDraw.Draw(images[-1]).text(
            ((SIZE - left - right) / 2, (SIZE - top - bottom) / 2), glyph, fill=255, font=font
        )
    return images


def packages(paths: Sequence[str | Path]) -> str:
    """The Debian packages that files belong to, with their versions; the number of files where there is no dpkg."""
    try:
        owners = subprocess.run(["dpkg-query", "-S", *map(str, paths)], text=True, capture_output=True).stdout
        names = sorted({line.split(":")[0] for line in owners.splitlines() if not line.startswith("diversion")})
        show = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *names]
        return "Debian's " + ", ".join(subprocess.run(show, text=True, capture_output=True).stdout.splitlines())
    except FileNotFoundError:
        return f"{len(paths)} files or folders"


if __name__ == "__main__":
    main()
