"""Where images and masks are found: folders of pairs, tables, columns, the Hub."""

import json
import os
import subprocess
import sys

import pytest
from datasets import Dataset, DatasetDict, Features, Image
from hub_content import card
from hub_server import HubServer
from masked import NAMES, classes, folder, mask, photo
from refusals import refusal

from hf_gdkd.data.segmentation import load_segmentation


@pytest.mark.parametrize("kind", ["root", "by side", "cityscapes", "json", "saved", "parquet"])
def test_pairs_are_found_in_every_layout(tmp_path, kind, caplog):
    rows, root = [(photo(i), mask([0, i])) for i in (1, 2)], tmp_path / "data"
    places = {
        "root": "images/{}.png masks/{}_mask.png",
        "by side": "images/{split}/{}.jpg annotations/{split}/{}.png",
        "cityscapes": "leftImg8bit/{split}/ulm/{}_leftImg8bit.png gtFine/{split}/ulm/{}_gtFine_labelIds.png",
        "json": "pictures/{}.jpg pictures/{}.png",
    }
    if kind in places:
        for split in ("training", "val") if kind == "by side" else ("train", "val"):
            for i, pair in enumerate(rows):
                for place, picture in zip(places[kind].split(), pair, strict=True):
                    path = root / place.format(i, split=split)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    picture.save(path)
                    if kind == "cityscapes" and "gtFine" in place:
                        picture.save(str(path).replace("labelIds", "instanceIds"))
    columns = {"pixel_values": [each for each, _ in rows], "annotation": [each for _, each in rows]}
    saved = Dataset.from_dict(columns, Features({"pixel_values": Image(), "annotation": Image()}))
    if kind == "json":
        lines = [json.dumps({"image": f"pictures/{i}.jpg", "mask": f"pictures/{i}.png"}) for i in (0, 1)]
        (root / "metadata.json").write_text("\n".join(lines))
    elif kind == "saved":
        DatasetDict({"train": saved, "val": saved}).save_to_disk(root)
    elif kind == "parquet":
        root.mkdir()
        for split in ("train", "val"):
            saved.to_parquet(root / f"{split}.parquet")
    (root / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    splits = {"parquet": "validation"}  # as the library calls it
    whole = kind in ("root", "json")  # without splits
    data = load_segmentation(str(root), **({"validation_rows": 1} if whole else {}))
    assert (len(data.train), data.eval_split) == (
        (1, "train (1 rows held out)") if whole else (2, splits.get(kind, "val"))
    )
    assert "without a partner" not in caplog.text
    for row in data.train:
        assert classes([row]) == [0, row["sample_id"] + 1] and row["image"].size == (9, 7)


def test_what_has_no_partner_is_left_out_with_a_sentence(tmp_path, caplog):
    where = folder(tmp_path, [mask([0, 1]), mask([0, 2])])
    (tmp_path / "train/masks/0.png").unlink()
    data = load_segmentation(where)
    assert len(data.train) == 1 and "1 files without a partner" in caplog.text
    (tmp_path / "train/masks/1.png").rename(tmp_path / "train/masks/other.png")
    refusal(lambda: load_segmentation(where), "no image has a mask of its name", "name them alike")


def test_columns_can_be_named_and_are_not_guessed(tmp_path):
    columns = {"image": [photo()], "first": [mask([0, 1])], "second": [mask([2])]}
    rows = Dataset.from_dict(columns, Features({name: Image() for name in columns}))
    rows.to_parquet(tmp_path / "train.parquet")
    rows.to_parquet(tmp_path / "test.parquet")
    (tmp_path / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    refusal(lambda: load_segmentation(str(tmp_path)), "several mask columns (first, second)", "--label_column")
    refusal(lambda: load_segmentation(str(tmp_path), label_column="third"), "no mask column third")
    assert classes(load_segmentation(str(tmp_path), label_column="second").train) == [2]
    for split in ("train", "test"):  # the only one that is no mask by its name
        rows.select_columns(["image", "first"]).rename_columns({"image": "shot", "first": "mask"}).to_parquet(
            tmp_path / f"{split}.parquet"
        )
    assert load_segmentation(str(tmp_path)).train[0]["image"].tobytes() == photo().tobytes()


def test_the_hub_names_the_classes_in_a_file_or_in_the_card(tmp_path):
    files, written = {}, dict(enumerate(NAMES))
    for split in ("train", "test"):
        columns = {"image": [photo()], "label": [mask([0, 1])]}
        Dataset.from_dict(columns, Features({name: Image() for name in columns})).to_parquet(file := tmp_path / "rows")
        files[f"data/{split}-00000-of-00001.parquet"] = file.read_bytes()
    code = """
from hf_gdkd.data.segmentation import load_segmentation
for name in ("tester/file", "tester/card", "tester/none"):
    try:
        data = load_segmentation(name)
        print(data.label_names, sorted(set(data.eval[0]["labels"].tobytes())), len(data.revision))
    except ValueError as error:
        print(error)
"""
    with HubServer() as hub:
        hub.add("datasets", "tester/file", {**files, "id2label.json": json.dumps(written).encode()})
        hub.add("datasets", "tester/card", {**files, "README.md": card(id2label=written)})
        hub.add("datasets", "tester/none", files)
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | hub.env(home=tmp_path / "home")
        done = subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True, timeout=120)
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"{NAMES} [0, 1] 40"] * 2, done.stderr
    assert lines[2].startswith("data set tester/none does not name the classes of its masks (ids 0, 1): write")
