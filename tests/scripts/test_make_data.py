"""Data sets made from idx files and from fonts: nothing is lost, and no family of fonts is in two splits."""

import gzip
import json
import re
import struct
from pathlib import Path

import matplotlib
import numpy as np
from datasets import load_dataset
from matplotlib.ft2font import FT2Font

from hf_gdkd.data import load_segmentation
from hf_gdkd.scripts import make_data

FONTS = Path(matplotlib.get_data_path(), "fonts/ttf")


def idx_files(folder, pixels, labels):
    """pixels (2, N, 28, 28), labels (N,): of the training images, and of the others."""
    count = len(labels)
    for i, name in enumerate(("train", "t10k")):
        images = struct.pack(">4i", 2051, count, 28, 28) + pixels[i].tobytes()
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">2i", 2049, count) + labels))


def test_idx_files_become_rows(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 28, 28), dtype=np.uint8)
    idx_files(tmp_path, pixels, bytes([9, 0, 3, 3, 1, 2]))
    make_data.main(["fashion-mnist", str(tmp_path), str(tmp_path / "out")])
    data = load_dataset(str(tmp_path / "out"))
    for i, split in enumerate(("train", "test")):
        np.testing.assert_array_equal([np.asarray(image) for image in data[split]["image"]], pixels[i])
        assert data[split]["label"][:] == [9, 0, 3, 3, 1, 2]
    assert data["test"].features["label"].names[9] == "Ankle boot"
    assert (tmp_path / "out/about.md").read_text().startswith("10 classes; 6 train, 6 test. Fashion-MNIST")


def test_glyphs_of_a_font_are_whole_distinct_and_in_the_middle():
    images = make_data.draw(str(FONTS / "DejaVuSans.ttf"))
    assert len(images) == 62 and {image.size for image in images} == {(28, 28)}
    boxes = [image.getbbox() for image in images]
    assert all(abs(left + right - 28) <= 3 and abs(top + bottom - 28) <= 3 for left, top, right, bottom in boxes)
    largest = max(max(right - left, bottom - top) for left, top, right, bottom in boxes)
    assert 23 <= largest <= 26 and all(min(box) >= 0 and max(box) <= 28 for box in boxes)
    assert len({image.tobytes() for image in images}) == 62


def test_a_family_is_in_one_split(tmp_path):
    """Of matplotlib's own fonts: at most four of a family, and none that lacks a letter or a digit."""
    _, splits, _ = make_data.glyphs(FONTS)
    drawn = {split: {image.tobytes() for image in images} for split, (images, _) in splits.items()}
    families = {}
    for path in FONTS.glob("*.ttf"):
        font = FT2Font(str(path))
        if {ord(glyph) for glyph in make_data.GLYPHS} <= font.get_charmap().keys():
            families.setdefault(font.family_name.split()[0].lower(), []).append(str(path))
    assert families.pop("last", True)  # the Last Resort font draws one glyph for all
    assert len(families) > 1 and max(map(len, families.values())) > 4
    for paths in families.values():
        glyphs = [{image.tobytes() for image in make_data.draw(path)} for path in paths]
        counts = {split: sum(bool(each <= drawn[split]) for each in glyphs) for split in drawn}
        assert sum(count > 0 for count in counts.values()) == 1 and 1 <= max(counts.values()) <= 4
    assert all(labels == list(range(62)) * (len(labels) // 62) for _, labels in splits.values())
    assert sum(len(labels) for _, labels in splits.values()) // 62 == sum(min(len(p), 4) for p in families.values())


def test_fonts_that_draw_the_same_for_all_are_left_out(monkeypatch):
    one = make_data.draw(str(FONTS / "DejaVuSans.ttf"))
    monkeypatch.setattr(make_data, "draw", lambda path: [one[8]] * 62)
    assert all(not labels for _, labels in make_data.glyphs(FONTS)[1].values())


def test_no_garment_is_in_the_scenes_of_two_splits(tmp_path, monkeypatch):
    """Each garment is a disc of its own brightness, which tells in a scene which garment it is."""
    y, x = np.mgrid[:28, :28] - 13.5
    values = np.arange(100, 228, dtype=np.uint8).reshape(2, 64, 1, 1)
    idx_files(tmp_path, np.where(y**2 + x**2 < 150, values, 0).astype(np.uint8), bytes(i % 10 for i in range(64)))
    monkeypatch.setattr(make_data, "SCENES", {"train": 40, "validation": 20, "test": 30})
    make_data.main(["fashion-scenes", str(tmp_path), str(tmp_path / "out")])
    data = load_segmentation(str(tmp_path / "out"), eval_split="test")
    assert data.label_names == ["background", *make_data.FASHION] and (len(data.train), len(data.eval)) == (40, 30)
    splits = {"train": data.train, "test": data.eval}
    splits["validation"] = load_segmentation(str(tmp_path / "out"), eval_only=True).eval
    seen = {}
    for split, rows in splits.items():
        seen[split] = set()
        for row in rows:
            image, mask = np.asarray(row["image"]), np.asarray(row["labels"])
            assert image.shape == mask.shape == (64, 64) and 255 in mask and 0 in mask
            values = {int(value) for value in np.unique(image[(mask > 0) & (mask < 255)]) if value >= 100}
            classes = {(value - 100) % 64 % 10 + 1 for value in values}
            assert classes >= {*np.unique(mask).tolist()} - {0, 255}
            seen[split] |= {int(np.median(image[mask == each])) for each in np.unique(mask) if 0 < each < 255}
    assert not (seen["train"] & seen["test"] or seen["train"] & seen["validation"] or seen["validation"] & seen["test"])


def emoji_packages(folder, colours):
    """npm packages of five emoji: a vendor draws each as a square of its own colour, which `colours` gives."""

    def write(path, content):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(content))

    emoji = [("1F600", "face", ""), ("1F601", "face", ""), ("2764-FE0F", "heart", ""), ("1F44B-1F3FB", "hand", "1")]
    emoji += [("1F1EB-1F1F7", "country-flag", "")]
    known = [{"hexcode": h, "subgroups": s, "skintone": t, "group": "g"} for h, s, t in emoji]
    write("openmoji/data/openmoji.json", [*known, {**known[0], "hexcode": "E000", "group": "extras-openmoji"}])
    names = {"1f600": "grin", "1f601": "beam", "2764": "love", "1f44b-1f3fb": "wave", "1f1eb-1f1f7": "france"}
    for vendor, colour in colours.items():
        square = {"body": f'<path fill="{colour}" d="M0 0h8v16H0z"/>'}
        icons = {**dict.fromkeys([*names.values(), "extra"], square), "love": None, "red": square, "turned": square}
        aliases = {"love": {"parent": "red"}, "beam": {"parent": "turned", "hFlip": True}}
        del icons["love"], icons["beam"]
        write(f"@iconify-json/{vendor}/icons.json", {"icons": icons, "aliases": aliases, "width": 16, "height": 16})
        write(f"@iconify-json/{vendor}/package.json", {"name": vendor, "version": "1.0", "license": "MIT"})
    write(f"@iconify-json/{vendor}/chars.json", names)  # of the last vendor alone


def test_a_vendor_of_emoji_is_in_one_split(tmp_path, monkeypatch):
    """Left out: skin tones, flags, emoji of no standard, mirrored icons. The right half of an image stays white."""
    vendors = [vendor for split in make_data.VENDORS.values() for vendor in split]
    colours = {vendor: f"#{20 * (i + 1):02x}0000" for i, vendor in enumerate(vendors)}
    emoji_packages(tmp_path, colours)
    monkeypatch.setattr(make_data, "FEWEST", {"train": 5, "validation": 1, "test": 1})
    make_data.main(["emoji", str(tmp_path), str(tmp_path / "out")])
    data = load_dataset(str(tmp_path / "out"))
    assert data["train"].features["label"].names == ["face", "heart"]
    for split, vendors in make_data.VENDORS.items():
        images = [np.asarray(image) for image in data[split]["image"]]
        assert {image.shape for image in images} == {(32, 32, 3)} and all(
            (image[:, 20:] == 255).all() for image in images
        )
        drawn = [
            (f"#{image[16, 4, 0]:02x}0000", label) for image, label in zip(images, data[split]["label"], strict=True)
        ]
        assert drawn == [(colours[vendor], label) for vendor in vendors for label in (0, 1)]
    assert f"test: {make_data.VENDORS['test'][0]} 1.0 (MIT)." in (tmp_path / "out/about.md").read_text()
    monkeypatch.setattr(make_data, "FEWEST", {"train": 6, "validation": 1, "test": 1})
    assert make_data.emoji(tmp_path)[0] == []


def test_make_installs_every_vendor_of_emoji():
    installed = set(re.findall(r"([\w-]+)@\d", (Path(__file__).parents[2] / "Makefile").read_text()))
    assert installed == {vendor for split in make_data.VENDORS.values() for vendor in split} | {"openmoji"}
