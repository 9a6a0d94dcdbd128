"""Image and mask are scaled, cropped and flipped alike, in every view; evaluation sees them whole."""

import numpy as np
import pytest
import torch
from masked import mask, photo
from PIL import Image
from torch.utils.data import DataLoader
from transformers import (
    BeitImageProcessor,
    DPTImageProcessor,
    MobileNetV2ImageProcessor,
    MobileViTImageProcessor,
    SegformerImageProcessor,
)

from hf_gdkd.data import Augmented, SegmentationEvalTransform, SegmentationTransform, SegmentationView, Viewed, collate
from hf_gdkd.data.fingerprint import fingerprint
from hf_gdkd.data.segmentation import load_segmentation

VIEW = SegmentationView(SegformerImageProcessor(size={"height": 32, "width": 48}))
OTHER = SegmentationView(SegformerImageProcessor(image_mean=[0.2, 0.3, 0.4], image_std=[0.5] * 3))
BLOCK = 16  # pixels of a side of the parts that one class has
WIDTH, HEIGHT = 120, 90


def place_and_class(width=WIDTH, height=HEIGHT):
    """An image whose red and green say where a pixel was, 2 a pixel, and a mask of blocks that follows from it."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([2 * x, 2 * y, np.zeros_like(x)], axis=-1).astype(np.uint8)
    return {"image": Image.fromarray(image), "labels": Image.fromarray(block(x, y).astype(np.uint8))}


def block(x, y):
    return 10 * (y // BLOCK) + x // BLOCK


def colours(pixels, view):
    """0 to 255 (H, W, 3) of pixel values."""
    return (pixels * view.std.view(3, 1, 1) + view.mean.view(3, 1, 1)).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 2.0)])
def test_image_and_mask_of_all_views_show_the_same_place(scale):
    transform = SegmentationTransform(VIEW, {"teacher_pixel_values": OTHER}, crop_size=(40, 56), scale=scale)
    flips, corners = set(), set()
    for epoch in range(12):
        data = Augmented([place_and_class()], transform, seed=1)
        data.set_epoch(epoch)
        sample = data[0]
        seen = colours(sample["pixel_values"], VIEW)
        np.testing.assert_allclose(seen, colours(sample["teacher_pixel_values"], OTHER), atol=1e-3)
        labels = sample["labels"].numpy()
        valid = labels != 255
        assert labels.shape == seen.shape[:2] == (40, 56) and valid.mean() > 0.5
        x, y = seen[..., 0] / 2, seen[..., 1] / 2
        inside = valid & (np.abs((x + 0.5) % BLOCK - BLOCK / 2) < 7.2) & (np.abs((y + 0.5) % BLOCK - BLOCK / 2) < 7.2)
        assert inside.sum() > 0.2 * valid.sum()
        assert (labels == block(np.round(x), np.round(y)))[inside].all()
        near = [labels == block(np.round(x + i), np.round(y + j)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        assert np.any(near, axis=0)[valid].all()  # no class that is between two others
        if scale == (1.0, 1.0):  # nothing is interpolated
            assert valid.all() and (labels == block(np.round(x), np.round(y))).all()
        flips.add(bool(x[0, 5] > x[0, 10]))
        corners.add((round(float(x.min())), round(float(y.min()))))
    assert flips == {True, False} and len(corners) > 6


def test_what_is_missing_is_255_in_the_mask_and_the_mean_in_the_image(caplog):
    """Also where the class at the edge is 0; said once, whatever the number of images."""
    rows = [{"image": photo(i, (20, 10)), "labels": mask([0], size=(20, 10))} for i in range(3)]
    transform = SegmentationTransform(VIEW, {"teacher_pixel_values": OTHER}, crop_size=(16, 24), scale=(1, 1))
    for sample in Augmented(rows, transform, seed=0):
        labels = sample["labels"]
        assert (labels[:10, :20] == 0).all() and (labels[10:] == 255).all() and (labels[:, 20:] == 255).all()
        assert sample["pixel_values"][:, labels == 255].abs().max() < 0.01
        teacher = colours(sample["teacher_pixel_values"], OTHER)[labels == 255]
        np.testing.assert_allclose(teacher, np.broadcast_to(VIEW.mean_colour, teacher.shape), atol=1e-3)
    assert caplog.text.count("crop of 16 x 24") == 1 and "10 x 20" in caplog.text


def test_a_crop_depends_on_seed_row_and_view_alone():
    """Repeated augmentation, views that start again, workers and a selection of the rows change nothing."""
    data = load_segmentation("digit-scenes", train_rows=6, validation_rows=2)
    transform = SegmentationTransform(VIEW, crop_size=(24, 24))
    plain, twice = Augmented(data.train, transform, seed=3), Augmented(data.train, transform, seed=3, repeats=2)
    cycle = Augmented(data.train, transform, seed=3, views=2)
    plain.set_epoch(3), twice.set_epoch(1), cycle.set_epoch(7)  # view 3, views 2 and 3, view 1
    one, again = plain[4], twice[4 + len(data.train)]
    assert all(torch.equal(one[key], again[key]) for key in ("pixel_values", "labels"))
    assert not torch.equal(one["labels"], cycle[4]["labels"])
    cycle.set_epoch(1)
    first = cycle[4]
    cycle.set_epoch(9)
    assert torch.equal(first["labels"], cycle[4]["labels"])
    some = Augmented(data.train.select([4]), transform, seed=3)
    some.set_epoch(3)
    assert torch.equal(some[0]["labels"], one["labels"]) and some[0]["sample_id"] == one["sample_id"]
    batch = next(iter(DataLoader(plain, 6, collate_fn=collate, num_workers=2)))
    assert batch["labels"].dtype == torch.int64 and torch.equal(batch["labels"][4], one["labels"])


@pytest.mark.parametrize(
    "processor",
    [
        SegformerImageProcessor(),
        BeitImageProcessor(),
        DPTImageProcessor(),
        MobileNetV2ImageProcessor(),
        MobileViTImageProcessor(),  # blue first
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_a_view_normalises_as_its_processor_does(processor):
    image = photo(0, (64, 48))
    off = {"do_resize": False, "do_center_crop": False}
    expected = processor([image], return_tensors="pt", **off)["pixel_values"]
    view = SegmentationView(processor)
    torch.testing.assert_close(view.squash([image]), expected, atol=1e-5, rtol=1e-5)
    whole = processor([Image.new("RGB", (512, 512))], return_tensors="pt")["pixel_values"]
    assert view.size == whole.shape[2:]
    assert view.squash([Image.new("RGB", (4, 4), view.mean_colour)]).abs().max() < 0.01
    fixed = SegmentationView(processor, fixed=True)
    assert fixed.squash([image]).shape[2:] == fixed.size and not fixed.same_geometry(view)


def test_evaluation_sees_whole_images_and_masks():
    """Images of several sizes are padded where a batch needs it, the mask with 255."""
    rows = [{"image": photo(i, size), "labels": mask([i], size=size)} for i, size in enumerate([(30, 20), (25, 28)])]
    samples = list(Viewed(rows, SegmentationEvalTransform(VIEW)))
    assert [sample["pixel_values"].shape for sample in samples] == [(3, 20, 30), (3, 28, 25)]
    for row, sample in zip(rows, samples, strict=True):
        np.testing.assert_allclose(colours(sample["pixel_values"], VIEW), np.asarray(row["image"]), atol=1e-3)
        assert np.array_equal(sample["labels"], np.asarray(row["labels"]))
    batch = next(iter(DataLoader(Viewed(rows, SegmentationEvalTransform(VIEW)), 2, collate_fn=collate)))
    assert batch["pixel_values"].shape == (2, 3, 28, 30) and batch["labels"].shape == (2, 28, 30)
    padded = torch.ones(2, 28, 30, dtype=torch.bool)
    padded[0, :20, :30] = padded[1, :28, :25] = False
    assert torch.equal(batch["labels"] == 255, padded)
    assert (batch["pixel_values"].permute(0, 2, 3, 1)[padded] == 0).all()
    fixed = SegmentationView(SegformerImageProcessor(size={"height": 32, "width": 48}), fixed=True)
    sample = Viewed(rows, SegmentationEvalTransform(fixed))[0]
    assert sample["pixel_values"].shape == (3, 32, 48) and sample["labels"].shape == (20, 30)


def test_the_fingerprint_of_a_data_set_is_of_its_masks_too():
    data = load_segmentation("digit-scenes", eval_only=True, eval_split="test").eval
    other = data.with_format(None)
    masks = other["labels"][:]
    changed = other.remove_columns("labels").add_column(
        "labels", [*masks[1:], masks[0]], feature=other.features["labels"]
    )
    assert fingerprint(data) == fingerprint(other) != fingerprint(changed)
