"""Local data sets for comparisons without the Hub: parquet folders that `--dataset` takes.

    python scripts/make_data.py fashion-mnist /usr/share/datasets/fashion-mnist runs/data/fashion-mnist
    python scripts/make_data.py glyphs /usr/share/fonts runs/data/glyphs
    python scripts/make_data.py fashion-scenes /usr/share/datasets/fashion-mnist runs/data/fashion-scenes
    python scripts/make_data.py emoji runs/npm/node_modules runs/data/emoji

The first reads the gzipped idx files of Fashion-MNIST (Debian: dataset-fashion-mnist), or copies a data set of the Hub
(zalando-datasets/fashion_mnist). The second draws the 62 digits and letters, 28 x 28 grey, from every TrueType and
OpenType font in a folder (Debian: fonts-*); fonts whose family names begin with the same word are in one split. The
third composes scenes of 64 x 64 pixels with 3 to 5 garments of Fashion-MNIST and a mask, for semantic segmentation; no
garment is in two splits. The fourth draws emoji in colour, 32 x 32, from the npm packages that the Makefile names (and
needs resvg_py); the class is a subgroup of the Unicode Standard, such as food-fruit, and no vendor is in two splits.
All leave an about.md of what they were made of.
"""

import gzip
import hashlib
import io
import json
import string
import subprocess
from argparse import ArgumentParser
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
DRAWN, EMOJI_SIZE = 128, 32  # pixels: of an emoji as it is drawn, and as it is kept
VENDORS = {  # of @iconify-json
    "train": ("noto", "noto-v1", "emojione", "emojione-v1", "openmoji"),
    "validation": ("fluent-emoji-flat",),
    "test": ("twemoji",),
}
FEWEST = {"train": 20, "validation": 5, "test": 5}  # images of a class that is kept
SCENES = {"train": 1500, "validation": 300, "test": 500}
Splits = dict[str, tuple[list[Image.Image], list[int]]]
Pictures = tuple[Sequence[str], Splits, str]  # the names of the classes, the splits, and what they were made of


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("fashion-mnist", "glyphs", "fashion-scenes", "emoji"))
    parser.add_argument(
        "source", type=Path, help="folder of idx files, an id on the Hub, a folder of fonts, or one of npm packages"
    )
    parser.add_argument("output", type=Path, help="folder to write")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.kind == "fashion-scenes":
        classes = ("background", *FASHION)
        splits, about = fashion_scenes(options.source)
        (options.output / "id2label.json").write_text(json.dumps(dict(enumerate(classes))), encoding="utf-8")
    else:
        classes, pictures, about = {"fashion-mnist": fashion_mnist, "glyphs": glyphs, "emoji": emoji}[options.kind](
            options.source
        )
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


def fashion_mnist(folder: Path) -> Pictures:
    """The splits train and test of the four idx files in a folder or of a data set on the Hub."""
    if not folder.is_dir():
        data = load_dataset(str(folder))
        splits = {split: (rows["image"][:], rows["label"][:]) for split, rows in data.items()}
        return FASHION, splits, f"From the Hub: {folder}."
    splits = {split: ([Image.fromarray(p) for p in pixels], labels) for split, (pixels, labels) in read_idx(folder)}
    return FASHION, splits, f"{XIAO}, from {packages([folder])}."


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


def glyphs(folder: Path) -> Pictures:
    """The splits train, validation and test of the fonts in a folder."""
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
    return (
        GLYPHS,
        splits,
        f"Drawn from fonts ({fonts}) of {packages([path for each in drawn.values() for path in each])}.",
    )


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


def emoji(folder: Path) -> Pictures:
    """The splits train, validation and test of the npm packages in a folder, no vendor in two of them.

    Left out are skin tones, the flags of countries (alike whoever draws them), and classes that are too small.
    """
    groups = {
        plain(each["hexcode"]): each["subgroups"]
        for each in read_json(folder / "openmoji/data/openmoji.json")
        if not (each["skintone"] or each["group"].startswith("extras") or each["subgroups"] == "country-flag")
    }
    sets = {vendor: folder / "@iconify-json" / vendor for split in VENDORS.values() for vendor in split}
    names = defaultdict(list)  # by code points: the vendors share names, and some do not say what a name stands for
    for path in (each / "chars.json" for each in sets.values()):
        for codes, name in read_json(path).items() if path.exists() else ():
            names[plain(codes)].append(name)
    drawn: dict[str, list[tuple[Image.Image, str]]] = {split: [] for split in VENDORS}
    for split, vendor in ((split, vendor) for split, each in VENDORS.items() for vendor in each):
        icons = read_json(sets[vendor] / "icons.json")
        icons["icons"] |= {  # an alias with more keys turns or mirrors its icon
            name: icons["icons"][alias["parent"]] for name, alias in icons.get("aliases", {}).items() if len(alias) == 1
        }
        for codes, group in tqdm(groups.items(), desc=vendor):
            name = next((name for name in names[codes] if name in icons["icons"]), None)
            if name:
                drawn[split].append((draw_icon(icons, name), group))
    counts = {split: Counter(group for _, group in rows) for split, rows in drawn.items()}
    classes = sorted(
        group for group in {*groups.values()} if all(counts[each][group] >= FEWEST[each] for each in counts)
    )
    splits: Splits = {}
    for split, rows in drawn.items():
        rows = [(image, classes.index(group)) for image, group in rows if group in classes]
        splits[split] = ([image for image, _ in rows], [label for _, label in rows])
    sources = "; ".join(f"{split}: {', '.join(licence(sets[each]) for each in VENDORS[split])}" for split in VENDORS)
    about = (
        f"Emoji, {EMOJI_SIZE} x {EMOJI_SIZE} on white, by their subgroup in the Unicode Standard, split by vendor, so"
    )
    return classes, splits, f"{about} that the test is on emoji known from training in a style that is not. {sources}."


def plain(codes: str) -> str:
    """The code points of an emoji without the one that asks for colour, which some vendors leave out."""
    return codes.lower().replace("-fe0f", "")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def licence(package: Path) -> str:
    about = read_json(package / "package.json")
    return f"{about['name']} {about['version']} ({about['license']})"


def draw_icon(icons: dict[str, Any], name: str) -> Image.Image:
    """An icon of an Iconify set on white."""
    from resvg_py import svg_to_bytes  # for this data set alone

    icon = icons["icons"][name]
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    size = {"width": DRAWN, "height": DRAWN}
    png = bytes(svg_to_bytes(svg_string=svg, background="white", skip_system_fonts=True, **size))
    return Image.open(io.BytesIO(png)).convert("RGB").resize((EMOJI_SIZE, EMOJI_SIZE), Image.Resampling.LANCZOS)


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
