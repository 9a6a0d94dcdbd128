"""Data sets made from idx files and from fonts: nothing is lost, and no family of fonts is in two splits."""

import gzip
import struct
from pathlib import Path

import matplotlib
import numpy as np
from datasets import load_dataset
from matplotlib.ft2font import FT2Font

from hf_gdkd.scripts import make_data

FONTS = Path(matplotlib.get_data_path(), "fonts/ttf")


def test_idx_files_become_rows(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 28, 28), dtype=np.uint8)
    for i, name in enumerate(("train", "t10k")):
        images = struct.pack(">4i", 2051, 6, 28, 28) + pixels[i].tobytes()
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        labels = struct.pack(">2i", 2049, 6) + bytes([9, 0, 3, 3, 1, 2])
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
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
    splits, _ = make_data.glyphs(FONTS)
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
    assert all(not labels for _, labels in make_data.glyphs(FONTS)[0].values())
