"""Data sets with masks: what is stored, what it means, and what is refused, in one sentence."""

import json

import numpy as np
import pytest
import torch
from masked import NAMES, classes, coloured, folder, mask, photo
from refusals import refusal
from transformers import SegformerImageProcessor

from hf_gdkd.data.datasets import Augmented
from hf_gdkd.data.known_palettes import CITYSCAPES, CITYSCAPES_CLASSES
from hf_gdkd.data.label_space import ModelClasses
from hf_gdkd.data.segmentation import load_segmentation


@pytest.mark.parametrize("mode", ["L", "P", "I", "I;16", "RGB"])
def test_ids_are_read_from_every_mode(tmp_path, mode):
    stored = [mask([0, 1, 2, 255], mode), mask([2, 1], mode)]
    data = load_segmentation(folder(tmp_path, stored, kind="tiff" if mode == "I" else "png"))
    assert data.label_names == NAMES and not data.reduce_labels
    for row, expected in zip(data.train, stored, strict=True):
        values = np.asarray(expected)
        assert np.array_equal(np.asarray(row["labels"]), values[..., 0] if mode == "RGB" else values)
    if mode == "P":
        assert data.palette == [(0, 255, 7), (1, 254, 7), (2, 253, 7)]


def test_digit_scenes_are_always_the_same():
    first, again = (load_segmentation("digit-scenes") for _ in range(2))
    assert (len(first.train), len(first.eval)) == (500, 100)
    assert [first.train[7][key].tobytes() for key in ("image", "labels")] == [
        again.train[7][key].tobytes() for key in ("image", "labels")
    ]
    seen = {value for row in first.train.select(range(30)) for value in np.unique(np.asarray(row["labels"])).tolist()}
    assert seen == {*range(11), 255} and first.label_names == ["background", *map(str, range(10))]


VOC = {"background": [0, 0, 0], "aeroplane": [128, 0, 0], "bicycle": [0, 128, 0]}
CITY = [0, 7, 8, 11, 21, 23, 26, 33]  # unlabeled, road, sidewalk, building, vegetation, sky, car, bicycle


def test_colours_are_read_by_the_palette_of_the_data_set(tmp_path, caplog):
    """The names of id2label decide the order; a colour of no class there, or called ignore, is no class."""
    colours = {"tree": [0, 99, 0], "road": [9, 9, 9], "sky": [0, 0, 255], "ignore": [255, 255, 255], "car": [1, 2, 3]}
    stored = [coloured([*colours.values()]), coloured([colours["road"]])]
    data = load_segmentation(folder(tmp_path, stored, palette=colours))
    assert data.label_names == NAMES and data.palette == [(0, 0, 255), (9, 9, 9), (0, 99, 0)]
    assert np.asarray(data.train[0]["labels"])[0].tolist() == [2, 1, 0, 255, 255, 2, 1, 0, 255]
    assert classes(data.train, 1) == [1]  # grey as it is
    assert "colours of car mean no class" in caplog.text


def test_a_palette_that_differs_between_masks_makes_colours_of_ids(tmp_path):
    """Pictures that were reduced to 256 colours one by one: an index means something else in each."""
    stored = []
    for order in ([(0, 0, 0), (128, 0, 0)], [(128, 0, 0), (0, 128, 0)]):
        each = mask([0, 1]).convert("P")
        each.putpalette([channel for colour in order for channel in colour])
        each.frombytes(np.asarray(mask([0, 1])).tobytes())
        stored.append(each)
    data = load_segmentation(folder(tmp_path, stored, names=None, palette=VOC))
    assert [classes(data.train, row) for row in (0, 1)] == [[0, 1], [1, 2]]


def test_black_and_white_are_two_classes_where_the_palette_says_so(tmp_path):
    where = folder(tmp_path, [mask([0, 255])], names=["no", "yes"])
    refusal(lambda: load_segmentation(where), "0 and 255 alone", "palette.json")
    (tmp_path / "palette.json").write_text(json.dumps({"no": [0, 0, 0], "yes": [255, 255, 255]}))
    assert classes(load_segmentation(where).train) == [0, 1]


@pytest.mark.parametrize("cityscapes", [False, True])
def test_known_colours_need_no_palette(tmp_path, cityscapes, caplog):
    colours = (
        [(128, 64, 128), (70, 130, 180), (0, 0, 142), (0, 0, 0)] if cityscapes else [*VOC.values(), (224, 224, 192)]
    )
    data = load_segmentation(folder(tmp_path, [coloured(colours)], names=None))
    assert classes(data.train) == ([0, 10, 13, 255] if cityscapes else [0, 1, 2, 255])
    assert ("Cityscapes" if cityscapes else "Pascal VOC") in caplog.text
    assert len(data.label_names) == len(data.palette) == (19 if cityscapes else 21)


def test_cityscapes_raw_ids_become_the_training_classes(tmp_path, caplog):
    """By the teacher's names and the ids, by an id2label.json of raw ids, and not where they are training ids."""
    teacher = ModelClasses(["bicycle", *CITYSCAPES_CLASSES[:-1]])
    raw = folder(tmp_path / "raw", [mask(CITY)], names=None)
    data = load_segmentation(raw, models=[teacher])
    assert data.label_names == CITYSCAPES_CLASSES and classes(data.train) == [0, 1, 2, 8, 10, 13, 18, 255]
    assert "7 -> 0 road" in caplog.text and "33 -> 18 bicycle" in caplog.text
    named = folder(tmp_path / "named", [mask([7, 8, 11])], names=[name for name, i, _ in CITYSCAPES if i >= 0])
    data = load_segmentation(named)
    assert data.label_names == CITYSCAPES_CLASSES and classes(data.train) == [0, 1, 2]
    caplog.clear()
    trained = folder(tmp_path / "cityscapes", [mask([0, 7, 18, 255])], names=None)
    assert classes(load_segmentation(trained).train) == [0, 7, 18, 255] and "as they are" in caplog.text
    wrong = folder(tmp_path / "cityscapes-19", [mask([0, 19])], names=None)
    refusal(lambda: load_segmentation(wrong), "mask in row 0", "outside the label space, 19")


SAYS = ModelClasses(NAMES, reduce_labels=True)
FULL, PART = [0, 1, 2, 3, 255], [0, 1, 2, 255]  # ids that reach the number of names, and that do not


@pytest.mark.parametrize(
    "ids, names, options, expected",
    [
        (FULL, NAMES, {}, (True, NAMES, [0, 1, 2, 255])),  # the data say so
        (FULL, NAMES, {"models": [SAYS, SAYS]}, (True, NAMES, [0, 1, 2, 255])),  # once, whoever says so
        (PART, NAMES, {"models": [SAYS]}, (True, NAMES, [0, 1, 255])),  # the teacher
        (PART, NAMES, {"models": [ModelClasses(NAMES), SAYS]}, (True, NAMES, [0, 1, 255])),  # the student
        (PART, None, {"models": [SAYS]}, (True, NAMES, [0, 1, 255])),
        (PART, NAMES, {}, (False, NAMES, [0, 1, 2, 255])),  # nobody
        (PART, NAMES, {"models": [ModelClasses("abc", True)]}, (False, NAMES, [0, 1, 2, 255])),  # a backbone's leftover
        (PART, NAMES, {"models": [SAYS], "reduce_labels": False}, (False, NAMES, [0, 1, 2, 255])),
        (PART, NAMES, {"reduce_labels": True}, (True, NAMES, [0, 1, 255])),
        (FULL, ["background", *NAMES], {"models": [SAYS]}, (True, NAMES, [0, 1, 2, 255])),  # its name goes too
        (FULL, ["background", *NAMES], {"reduce_labels": True}, (True, NAMES, [0, 1, 2, 255])),
        (FULL, ["void", *NAMES], {"models": [ModelClasses(["void", *NAMES], True)]}, (False, ["void", *NAMES], FULL)),
    ],
)
def test_labels_are_reduced_exactly_once(tmp_path, ids, names, options, expected, caplog):
    data = load_segmentation(folder(tmp_path, [mask(ids)], names=names), **options)
    assert (data.reduce_labels, data.label_names, classes(data.train)) == expected
    assert ("labels are reduced" in caplog.text) is data.reduce_labels
    stored, read = np.asarray(mask(ids)), np.asarray(data.eval[0]["labels"])
    if data.reduce_labels:
        reduced = SegformerImageProcessor().reduce_label([torch.from_numpy(stored.astype(np.int64))])[0]
        assert np.array_equal(read, reduced)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda at: folder(at, [mask([0, 1]), mask([0, 1], size=(9, 8))]), ["row 1", "9 x 8", "9 x 7"]),
        (
            lambda at: folder(at, [mask([0, 1]), mask([0, 3, 77])]),
            ["split train: mask in row 1", "outside", "77", "0 to 2"],
        ),
        (lambda at: folder(at, [coloured([(0, 0, 0), (1, 2, 3)])]), ["row 0", "unknown", "(1, 2, 3)", "palette.json"]),
        (lambda at: folder(at, [coloured([(0, 0, 0), (128, 0, 0)])], names=None), ["row 0", "unknown"]),  # too few
        (
            lambda at: folder(at, [coloured([(0, 0, 0), (1, 2, 3)])], names=None, palette=VOC),
            ["row 0", "(1, 2, 3)", "no class has"],
        ),
        (lambda at: folder(at, [mask([0, 1])], kind="jpg"), ["row 0", "JPEG", "PNG"]),
        (lambda at: folder(at, [mask(range(40), size=(40, 4))], sizes=(40, 4)), ["row 0", "interpolation"]),
        (lambda at: folder(at, [mask([255])]), ["split train", "no pixel with a class", "255"]),
        (lambda at: folder(at, [mask([0, 1])], names=None), ["does not name", "id2label.json", "0, 1"]),
        (
            lambda at: folder(at, [mask([0])], names=["a", "b"], palette={"a": [0, 0, 300]}),
            ["palette.json", "0 to 255"],
        ),
        (lambda at: folder(at, [mask([0])], names=["a", "a"]), ["id2label.json", "two classes"]),
        (lambda at: folder(at, [mask([0, 1]).convert("LA")]), None),
        (lambda at: folder(at, [photo(3, (300, 300))], sizes=(300, 300)), ["colours", "interpolation", "label_column"]),
    ],
)
def test_bad_masks_are_refused_in_a_sentence(tmp_path, make, words):
    where = make(tmp_path)
    if words is None:  # a transparency that is the same everywhere says nothing
        assert classes(load_segmentation(where).train) == [0, 1]
    else:
        refusal(lambda: load_segmentation(where), *words)


def test_a_teacher_of_fewer_classes_is_no_sign_of_reduced_labels(tmp_path):
    """Its names are those of other classes, unless its image processor or the user says that labels are reduced."""
    where = folder(tmp_path, [mask(FULL)], names=None)
    teacher = [ModelClasses(NAMES)]
    refusal(lambda: load_segmentation(where, models=teacher), "outside the label space, 3", "--reduce_labels true")
    assert load_segmentation(where, models=teacher, reduce_labels=True).label_names == NAMES
    assert load_segmentation(where, models=[SAYS]).reduce_labels


def test_every_mask_is_checked_as_it_is_read(tmp_path, monkeypatch):
    """Of a large data set not all are looked at before: what comes later is refused with its row."""
    monkeypatch.setattr("hf_gdkd.data.segmentation.CHECKED_ROWS", 2)
    stored = [mask([0, 1]), mask([0, 3]), mask([0, 1], size=(8, 7)), coloured([(1, 0, 1)]), mask([2])]
    data = load_segmentation(folder(tmp_path, stored))
    refusal(lambda: data.train[1], "mask in row 1", "3")
    refusal(lambda: Augmented(data.train, None, seed=0).rows[2], "mask in row 2", "8 x 7")
    refusal(lambda: data.train[3], "mask in row 3", "has colours")


def test_masks_that_cannot_be_read_are_left_out_and_counted(tmp_path):
    where = folder(tmp_path, [mask([0, 1]), mask([1]), mask([2])])
    (tmp_path / "train/masks/1.png").write_bytes(b"no png")
    refusal(lambda: load_segmentation(where), "mask in row 1", "1.png", "cannot be read")
    data = load_segmentation(where, on_bad_image="skip")
    assert data.bad_images == 1 and data.train["sample_id"][:] == [0, 2] and classes(data.train, 1) == [2]
