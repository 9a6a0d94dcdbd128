"""A folder of images: its splits and classes by our own rules, and a sentence on everything that is left out."""

import os

import pytest
from pictures import encode, picture
from PIL import Image as PILImage
from refusals import refusal

from hf_gdkd.data.loading import load_data

PNG = encode(picture(0, (6, 5)))


def folder(root, *paths):
    """Files at `paths`: images, or empty."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(PNG if file.suffix == ".png" else b"")
    return str(root)


def images(*classes, split="", count=2):
    return [f"{split}{name}/{i}.png" for name in classes for i in range(count)]


def load(path, **options):
    return load_data(path, **{"require_labels": True} | options)


def test_a_class_called_as_a_split_is_a_class(tmp_path):
    data = load(folder(tmp_path / "a", *images("bullet_train", "train", "bus", count=5)))
    assert data.label_names == ["bullet_train", "bus", "train"]
    assert (len(data.train), len(data.eval)) == (13, 2)
    root = folder(tmp_path / "b", *images("train", "bus", split="train/"), *images("train", "bus", split="val/"))
    data = load(root)
    assert (data.label_names, data.eval_split, len(data.train), len(data.eval)) == (["bus", "train"], "val", 4, 4)
    assert data.eval["labels"][:] == [0, 0, 1, 1]


def test_links_are_followed_and_circles_are_not(tmp_path):
    folder(tmp_path / "store", *images("ant", "bee", count=10))
    (tmp_path / "data").mkdir()
    for name in ("ant", "bee"):
        os.symlink(tmp_path / "store" / name, tmp_path / "data" / name)
    os.symlink(tmp_path / "data", tmp_path / "store" / "ant" / "up")
    os.symlink(tmp_path / "store" / "bee" / "0.png", tmp_path / "store" / "ant" / "linked.png")
    data = load(str(tmp_path / "data"))
    assert data.label_names == ["ant", "bee"] and len(data.train) + len(data.eval) == 21


def test_every_suffix_that_pillow_opens_counts(tmp_path):
    folder(tmp_path, *images("a", "b", count=5))
    for suffix in ("avif", "webp", "TIFF", "jp2", "PNG"):
        kind = {"jp2": "JPEG2000"}.get(suffix, suffix.upper())
        PILImage.new("RGB", (16, 16)).save(tmp_path / "a" / f"x.{suffix}", kind)
    data = load(str(tmp_path))
    assert len(data.train) + len(data.eval) == 15


def test_what_is_left_out_is_counted_and_said(tmp_path, caplog):
    root = folder(
        tmp_path, *images("a", "b", split="train/"), *images("a", "b", split="test/"), "preview.png", "train/stray.png",
        "metadata.csv", "train/a/notes.txt", "train/b/.DS_Store", "archive.zip", "raw/1.png", "raw/2.png",
        "train/.ipynb_checkpoints/x.png", "__MACOSX/train/a/0.png",
    )  # fmt: skip
    (tmp_path / "empty").mkdir()
    data = load(root)
    assert (data.label_names, len(data.train), len(data.eval)) == (["a", "b"], 4, 4)
    said = caplog.text
    for words in (
        "train has 4 images of 2 classes", "Classes: a, b.", "the folder raw (2 images)", "1 image (stray.png) outside",
        "1 image (preview.png) outside", "folders without images (empty)", "1 .csv", "1 .txt", "1 .zip", "3 hidden",
    ):  # fmt: skip
        assert words in said, (words, said)


@pytest.mark.parametrize("flat", ["test/1.png", "test/images/1.png"])
def test_an_unlabelled_test_folder_is_ignored(tmp_path, caplog, flat):
    """Flat, or in one folder that is no class, as in Tiny ImageNet; without labels it is taken."""
    root = folder(tmp_path, *images("a", "b", split="train/", count=10), flat)
    data = load(root)
    assert data.eval_split == "train (held-out tenth)" and data.label_names == ["a", "b"]
    assert "test/ is ignored" in caplog.text
    data = load_data(root, ignore_labels=True)
    assert (data.eval_split, len(data.eval), len(data.train)) == ("test", 1, 20)


def test_folders_inside_a_class_belong_to_it(tmp_path):
    data = load(folder(tmp_path, *images("a/x", "a/y", "b/images", split="train/", count=10)))
    assert data.label_names == ["a", "b"] and len(data.train) + len(data.eval) == 30


@pytest.mark.parametrize("paths, said", [
    (["1.png", "2.png"], ["no class folders", "2 images in", "--label_free"]),
    (images("cat", count=5), ["one class folder with images, cat", "--label_free"]),
    (images("cat", split="train/"), ["one class folder with images, cat"]),
    (images("a", "b", split="pets/"), ["one class folder with images, pets, which holds the folders a, b"]),
    (["train/1.png", "test/1.png"], ["no class folders", "train", "test"]),
    (images("a", "b", split="Training/") + images("a", "b", split="Testing/"), ["Testing, Training", "rename"]),
    (images("a", "b", split="train/") + images("extra"), ["train, extra", "could be a split or a class"]),
    (images("train", "test", split="bottle/"), ["holds splits inside of folders", "bottle has test, train"]),
])  # fmt: skip
def test_what_cannot_be_read_names_what_was_found(tmp_path, paths, said):
    refusal(lambda: load(folder(tmp_path, *paths)), *said)


def test_classes_that_train_lacks_are_said(tmp_path, caplog):
    root = folder(tmp_path, *images("a", "b", split="train/"), *images("a", "B", split="val/"))
    assert load(root).label_names == ["B", "a", "b"]
    assert "val/ has classes that train/ lacks: B" in caplog.text
    assert "names differ in case or white space alone ('B', 'b')" in caplog.text


@pytest.mark.parametrize("name", ["imagefolder", "csv", "parquet"])
def test_a_name_is_never_taken_for_a_format(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path, *images("x", "y"))
    refusal(lambda: load(name), f"no folder {name}", "a format of the library")
    folder(tmp_path / name, *images("a", "b", count=10))
    assert load(name).label_names == ["a", "b"]


def test_what_the_library_guesses_is_said(tmp_path, caplog):
    """As it reads a repository on the Hub, or a folder with a configuration."""
    root = folder(tmp_path / "d", *images("a", "b", split="train/", count=10))
    assert load(root, config="default").label_names == ["a", "b"]
    assert "may take a class for a split (found: train)" in caplog.text


def test_archives_alone_are_to_be_unpacked(tmp_path):
    refusal(lambda: load(folder(tmp_path, "train.zip", "README.md")), "1 archives", "unpack")


def test_a_folder_of_images_is_streamed(tmp_path):
    root = folder(tmp_path, *images("a", "b", split="train/", count=5), *images("a", "b", split="val/"))
    data = load(root, streaming=True)
    assert sorted(row["labels"] for row in data.train) == [0] * 5 + [1] * 5 and len(data.eval) == 4
