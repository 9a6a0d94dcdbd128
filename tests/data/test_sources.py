"""Where data sets come from: tables of every kind, `save_to_disk`, one split alone, small and empty ones."""

import errno
import os

import datasets
import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from pictures import encode, picture, stored
from refusals import refusal

from hf_gdkd.data.loading import load_data

PNGS = [encode(picture(i, (7, 6))) for i in range(12)]
KINDS = ["cat", "dog"] * 6


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def files(root):
    root.mkdir(parents=True, exist_ok=True)
    for i, data in enumerate(PNGS):
        (root / f"{i}.png").write_bytes(data)
    return [f"{i}.png" for i in range(12)]


def same_images(rows):
    numbers = rows["sample_id"][:]
    assert all(np.array_equal(np.asarray(rows[k]["image"]), picture(i, (7, 6))) for k, i in enumerate(numbers))


# -- tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature, values", [
    (Value("binary"), PNGS),
    (Value("large_binary"), PNGS),
    ({"bytes": Value("binary"), "path": Value("string")}, [stored(data, "x.png") for data in PNGS]),
    (Image(decode=False), [stored(data) for data in PNGS]),
], ids=["bytes", "large", "struct", "undecoded"])  # fmt: skip
@pytest.mark.parametrize("streaming", [False, True])
def test_bytes_are_cast_to_images(tmp_path, feature, values, streaming):
    (tmp_path / "d").mkdir()
    names = ClassLabel(names=["cat", "dog"])
    rows = Dataset.from_dict({"picture": values, "label": KINDS}, Features({"picture": feature, "label": names}))
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / "d" / f"{split}.parquet")
    data = load_data(str(tmp_path / "d"), streaming=streaming)
    assert data.label_names == ["cat", "dog"] and isinstance(data.eval.features["image"], Image)
    same_images(data.eval)
    assert len(list(data.train)) == 12 and isinstance(data.train.features["image"], Image)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("where", ["absolute", "relative", "bare"])
def test_paths_are_cast_to_images(tmp_path, kind, where):
    """Bare names are those of files in the one folder that holds the first of them."""
    root = tmp_path / "d"
    names = files(root / "images")
    base = {"absolute": f"{root}/images/", "relative": "images/", "bare": ""}[where]
    table = pd.DataFrame({"file_name": [base + name for name in names], "label": KINDS})
    if kind == "parquet":
        for i in range(12):  # as many tables as images
            table.iloc[i : i + 1].to_parquet(root / f"train-{i:02}.parquet")
    elif kind == "jsonl":
        table.to_json(root / "train.jsonl", orient="records", lines=True)
    else:
        table.to_csv(root / f"train.{kind}", index=False, sep="\t" if kind == "tsv" else ",")
    data = load_data(str(root))
    assert data.label_names == ["cat", "dog"] and (len(data.train), len(data.eval)) == (10, 2)
    same_images(data.train)


def test_a_name_in_two_folders_is_a_sentence(tmp_path):
    root = tmp_path / "d"
    names = files(root / "train")
    files(root / "test")
    pd.DataFrame({"image": names, "label": KINDS}).to_csv(root / "labels.csv", index=False)
    refusal(lambda: load_data(str(root)), "'0.png' is in several folders of", "absolute paths")


@pytest.mark.parametrize("feature, value, said", [
    (Value("string"), "aGVsbG8gd29ybGQ=", "(such as 'aGVsbG8gd29ybGQ=')"),
    (List(Value("int64")), [1, 2, 3], "of type List"),
    (Value("int64"), 3, "of type int64"),
    (Value("string"), "gone.png", "'gone.png' is no file"),
], ids=["base64", "list", "number", "gone"])  # fmt: skip
def test_other_columns_are_a_sentence(tmp_path, feature, value, said):
    (tmp_path / "d").mkdir()
    rows = Dataset.from_dict(
        {"image": [value] * 4, "label": [0, 1, 0, 1]}, Features({"image": feature, "label": Value("int64")})
    )
    rows.to_parquet(tmp_path / "d" / "train.parquet")
    refusal(lambda: load_data(str(tmp_path / "d"), image_column="image"), said)
    refusal(lambda: load_data(str(tmp_path / "d")), "--image_column" if "gone" not in said else said)


@pytest.mark.parametrize("many", [False, True])
def test_save_to_disk_is_read(tmp_path, many):
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    rows = Dataset.from_dict({"image": [stored(data) for data in PNGS], "label": KINDS}, features)
    saved = DatasetDict(train=rows, test=rows.select([3, 4])) if many else rows
    saved.with_format("torch").save_to_disk(tmp_path / "d")
    data = load_data(str(tmp_path / "d"))
    assert (len(data.train), len(data.eval)) == ((12, 2) if many else (10, 2)) and data.label_names == ["cat", "dog"]
    same_images(data.train)


def test_classes_that_look_alike_are_said(tmp_path, caplog):
    (tmp_path / "d").mkdir()
    features = Features({"image": Image(), "label": Value("string")})
    labels = ["cat", "cat ", "Cat", "dog"] * 3
    rows = Dataset.from_dict({"image": [stored(data) for data in PNGS], "label": labels}, features)
    rows.to_parquet(tmp_path / "d" / "train.parquet")
    assert len(load_data(str(tmp_path / "d")).label_names) == 4
    assert "('Cat', 'cat', 'cat ')" in caplog.text and "dog" not in caplog.text


@pytest.mark.parametrize("train, test, said", [
    (1, None, "has 1 rows, too few for one to train on and 1 to evaluate on"),
    (0, 3, "split train, is empty"),
    (3, 0, "split test, is empty"),
])  # fmt: skip
def test_tiny_splits_are_a_sentence(tmp_path, train, test, said):
    (tmp_path / "d").mkdir()
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    rows = Dataset.from_dict({"image": [stored(data) for data in PNGS], "label": KINDS}, features)
    for split, count in (("train", train), ("test", test)):
        if count is not None:
            rows.select(range(count)).to_parquet(tmp_path / "d" / f"{split}.parquet")
    refusal(lambda: load_data(str(tmp_path / "d")), said)


# -- one split alone -----------------------------------------------------------------------------------------


def three_splits(root):
    root.mkdir()
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    rows = Dataset.from_dict({"image": [stored(data) for data in PNGS], "label": KINDS}, features)
    for split in ("train", "validation", "test"):
        rows.to_parquet(root / f"{split}.parquet")
    return str(root)


def test_only_the_splits_that_are_wanted_are_read(tmp_path):
    """The others are not even parquet; what their card promises of them does not matter."""
    root = three_splits(tmp_path / "d")
    infos = "".join(f"  - name: {s}\n    num_examples: 12\n    num_bytes: 1\n" for s in ("train", "validation", "test"))
    (tmp_path / "d" / "README.md").write_text(f"---\ndataset_info:\n  splits:\n{infos}---\n")
    (tmp_path / "d" / "test.parquet").write_bytes(b"no parquet")
    data = load_data(root)
    assert (len(data.train), len(data.eval), data.eval_split) == (12, 12, "validation")
    (tmp_path / "d" / "train.parquet").write_bytes(b"no parquet")
    data = load_data(root, eval_only=True)
    assert data.train is None and (len(data.eval), data.eval_split) == (12, "validation")
    assert len(load_data(root, train_split="validation", eval_split="validation").eval) == 12
    refusal(lambda: load_data(root, eval_split="test", eval_only=True), "cannot be loaded")


def test_held_out_rows_alone_are_those_of_training(tmp_path):
    root = three_splits(tmp_path / "d")
    data = load_data(root, validation_rows=4, seed=1)
    alone = load_data(root, validation_rows=4, seed=2, eval_only=True)
    assert alone.train is None and alone.eval["sample_id"][:] == data.eval["sample_id"][:]
    assert not {*data.train["sample_id"]} & {*data.eval["sample_id"]} and alone.eval_split == data.eval_split


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    root = three_splits(tmp_path / "d")

    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "makedirs", refuse)
    refusal(lambda: load_data(root), "cannot be read or written (Read-only file system)", "HF_HOME")
