"""Rows keep the number that they have on disk, can be iterated over, and are held out whatever the seed."""

import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from pictures import encode, picture, stored
from transformers import ViTImageProcessor

from hf_gdkd.data.augment import Mix, image_augmentation
from hf_gdkd.data.datasets import Augmented, Viewed
from hf_gdkd.data.decoding import ImageError
from hf_gdkd.data.loading import load_data
from hf_gdkd.data.opened import Opened
from hf_gdkd.data.selection import draw, hold_out, numbered
from hf_gdkd.data.views import EvalTransform, TrainTransform, View

VIEW = View(ViTImageProcessor(size={"height": 8, "width": 8}))
LABELS = [0, 1] * 20


def rows_on_disk(folder, bad=()):
    folder.mkdir()
    names = ClassLabel(names=["a", "b"])
    images = [stored(b"" if i in bad else encode(picture(i, (9, 9))), f"{i}.png") for i in range(40)]
    rows = Dataset.from_dict({"image": images, "label": LABELS}, Features({"image": Image(), "label": names}))
    rows.to_parquet(folder / "train.parquet")
    return str(folder)


def test_every_selection_keeps_the_original_row(tmp_path, monkeypatch):
    """Bad images left out, rows held out, a part of the others drawn, and those shuffled."""
    folder = rows_on_disk(tmp_path / "d", bad=(0, 3, 17))
    data = load_data(folder, on_bad_image="skip", validation_rows=7, train_rows=20)
    for rows, size in ((data.train.shuffle(seed=1), 20), (data.eval, 7)):
        numbers = rows["sample_id"][:]
        assert len({*numbers}) == size and not {0, 3, 17} & {*numbers}
        assert all(np.array_equal(np.asarray(row["image"]), picture(row["sample_id"], (9, 9))) for row in rows)
        assert rows["labels"][:] == [LABELS[i] for i in numbers]
    samples = list(Augmented(data.train, TrainTransform(VIEW), seed=0))
    assert [sample["sample_id"] for sample in samples] == data.train["sample_id"][:]


@pytest.mark.parametrize("kind", ["augmented", "viewed", "opened"])
def test_an_error_names_the_original_row(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("hf_gdkd.data.decoding.CHECKED_ROWS", 0)
    data = load_data(rows_on_disk(tmp_path / "d", bad=range(40)), train_rows=10, validation_rows=4)
    rows = data.train.shuffle(seed=2)
    make = {
        "augmented": lambda: Augmented(rows, TrainTransform(VIEW), seed=0),
        "viewed": lambda: Viewed(rows, EvalTransform(VIEW)),
        "opened": lambda: Opened(rows),
    }[kind]
    for i in (4, -1):
        with pytest.raises(ImageError, match=rf"image in row {(number := rows['sample_id'][i])} \({number}\.png\)"):
            make()[i]


def test_a_view_depends_on_seed_original_row_and_view_number(tmp_path):
    rows = numbered(load_data(rows_on_disk(tmp_path / "d")).train.remove_columns("sample_id"))
    transform = TrainTransform(VIEW)
    data = {
        name: Augmented(some, transform, seed=0) for name, some in {"all": rows, "some": rows.select([9, 5])}.items()
    }
    for epoch in (0, 3):
        for each in data.values():
            each.set_epoch(epoch)
        assert torch.equal(data["all"][5]["pixel_values"], data["some"][1]["pixel_values"])
    twice = Augmented(rows, transform, seed=0, repeats=2)
    twice.set_epoch(1)  # views 2 and 3
    assert torch.equal(twice[5 + len(rows)]["pixel_values"], data["all"][5]["pixel_values"])
    assert not torch.equal(twice[5]["pixel_values"], data["all"][5]["pixel_values"])


@pytest.mark.parametrize("repeats", [1, 3])
def test_iterating_ends(repeats):
    rows = [{"image": picture(i, (9, 9)), "labels": i} for i in range(5)]
    augmented = Augmented(rows, TrainTransform(VIEW), seed=0, repeats=repeats)
    for data in (augmented, Viewed(rows, EvalTransform(VIEW)), Opened(rows)):
        assert [sample["labels"] for sample in data] == [0, 1, 2, 3, 4] and len(list(data)) == len(data) == 5
        assert data[-1]["labels"] == data[np.int64(4)]["labels"] == data[torch.tensor(4)]["labels"] == 4
        for index in (5 * (repeats if data is augmented else 1), -6):
            with pytest.raises(IndexError, match=f"row {index} of"):
                data[index]


def test_what_workers_that_are_spawned_need_can_be_pickled():
    rows = [{"image": picture(0, (9, 9)), "labels": 0}]
    for augment in ({}, {"augment": image_augmentation("randaugment", 0.1, 2)}):
        transform = pickle.loads(pickle.dumps(TrainTransform(VIEW, **augment)))
        for data in (
            Augmented(rows, transform, seed=0, mix=Mix(3, (8, 8), mixup_alpha=1, cutmix_alpha=1)),
            Viewed(rows, transform),
        ):
            ForkingPickler.dumps(data)


# -- held-out rows -------------------------------------------------------------------------------------------


def test_held_out_rows_do_not_depend_on_the_seed(tmp_path):
    folder = rows_on_disk(tmp_path / "d")
    for options in ({"validation_rows": 8}, {}):
        one, two = (load_data(folder, seed=seed, train_rows=10, **options) for seed in (1, 2))
        assert one.eval["sample_id"][:] == two.eval["sample_id"][:]
        assert one.train["sample_id"][:] != two.train["sample_id"][:]


@pytest.mark.parametrize("size", [0, 1, 7, 100, 333, 999, 1000])
def test_the_draw_is_stratified(size):
    labels = np.random.default_rng(0).choice(6, 1000, p=[0.5, 0.3, 0.1, 0.06, 0.03, 0.01])
    drawn = draw(labels, size, 0)
    assert drawn.sum() == size and (draw(labels, size, 0) == drawn).all()
    share = np.bincount(labels) * size / 1000
    assert (np.abs(np.bincount(labels[drawn], minlength=6) - share) < 1).all()
    assert size in (0, 1000) or (draw(labels, size, 1) != drawn).any()


def test_a_class_of_one_image_is_not_held_out():
    """Not even where the shares are 9.0 of the large class and 0.1 of each of the others."""
    labels = np.array([0] * 90 + list(range(1, 11)))
    for seed in range(5):
        drawn = draw(labels, 10, seed)
        assert drawn.sum() == 10 and not drawn[90:].any()


def test_a_million_rows_are_drawn_in_seconds():
    """scikit-learn takes 81 s."""
    import time

    labels = np.random.default_rng(0).integers(0, 1000, 1_281_167)
    start = time.perf_counter()
    drawn = draw(labels, 50_000, 0)
    assert time.perf_counter() - start < 5 and set(np.bincount(labels[drawn])) <= set(range(40, 62))


def test_hold_out_parts_are_disjoint():
    rows = numbered(Dataset.from_dict({"labels": LABELS}))
    train, held_out = hold_out(rows, 11)
    assert sorted(train["sample_id"][:] + held_out["sample_id"][:]) == list(range(40)) and len(held_out) == 11
