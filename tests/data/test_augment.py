"""Augmentations come before the views, depend on seed, epoch and row alone, and mix labels as they mix images."""

import pytest
import torch
import transformers
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as TF

from hf_gdkd.commands.arguments.parsing import parse
from hf_gdkd.data.augment import GREY, Mix, image_augmentation
from hf_gdkd.data.datasets import Augmented, collate
from hf_gdkd.data.loading import load_data
from hf_gdkd.data.views import TrainTransform, View
from hf_gdkd.errors import InputError

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SMALL = View(transformers.ViTImageProcessor(size={"height": 16, "width": 16}, **HALF))
LARGE = View(transformers.ViTImageProcessor(size={"height": 32, "width": 32}, **HALF))
MIXES = {"mixup": {"mixup_alpha": 0.8}, "cutmix": {"cutmix_alpha": 1.0}}


def solid(value, size=(32, 32)):
    return Image.new("RGB", size, (value,) * 3)


def augmented(mix=None, repeats=1, seed=0, augment=lambda crop: crop, views=None):
    transform = TrainTransform(LARGE, views, crop_scale=1.0, flip=False, augment=augment)
    return Augmented(load_data("digits").train.select(range(50)), transform, seed=seed, mix=mix, repeats=repeats)


@pytest.mark.parametrize("kind", MIXES)
def test_the_label_has_the_shares_of_the_image(kind):
    """Of two images of one colour each, the mean colour tells how much of each is in the mixed one."""
    torch.manual_seed(0)
    mix = Mix(5, (32, 32), **MIXES[kind])
    shares = []
    for _ in range(50):
        image, label = mix([solid(200), solid(0)], [1, 4])
        share = TF.pil_to_tensor(image).float().mean() / 200
        assert label.sum() == pytest.approx(1) and label[[0, 2, 3]].sum() == 0
        assert float(share) == pytest.approx(float(label[1]), abs=0.5 / 200 + 1e-3)
        colours = set(TF.pil_to_tensor(image).unique().tolist())
        assert len(colours) == 1 if kind == "mixup" else colours <= {0, 200}
        shares.append(float(label[1]))
    assert max(shares) - min(shares) > 0.4


def test_both_kinds_take_turns():
    torch.manual_seed(0)
    mix = Mix(2, (32, 32), mixup_alpha=1.0, cutmix_alpha=1.0)
    colours = [len(TF.pil_to_tensor(mix([solid(200), solid(0)], [0, 1])[0]).unique()) for _ in range(60)]
    assert 15 < colours.count(2) < 50


def test_two_samples_of_one_class_stay_that_class():
    _, label = Mix(3, (32, 32), mixup_alpha=1.0)([solid(10), solid(20)], [2, 2])
    torch.testing.assert_close(label, torch.tensor([0.0, 0.0, 1.0]))


@pytest.mark.parametrize("kind", MIXES)
def test_teacher_and_student_see_the_same_mixed_image(kind):
    """The larger view is the mixed image itself, and the smaller is made from it."""
    mix = Mix(10, LARGE.size, **MIXES[kind])
    for sample in (augmented(mix, views={"teacher_pixel_values": SMALL})[i] for i in range(5)):
        mixed = TF.to_pil_image((sample["pixel_values"] * 0.5 + 0.5).clamp(0, 1))
        torch.testing.assert_close(SMALL.squash([mixed])[0], sample["teacher_pixel_values"], rtol=0, atol=1 / 127)
        assert sample["labels"].shape == (10,) and sample["labels"].sum() == pytest.approx(1)


@pytest.mark.parametrize("kind", [*MIXES, "none"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_depends_on_seed_epoch_and_row_alone(kind, workers):
    def batch(order, seed=0, epoch=3):
        data = augmented(None if kind == "none" else Mix(10, LARGE.size, **MIXES[kind]), seed=seed,
                         augment=image_augmentation("randaugment", 0.5))  # fmt: skip
        data.set_epoch(epoch)
        torch.manual_seed(hash(tuple(order)) % 1000)  # what else happens does not matter
        loader = DataLoader(torch.utils.data.Subset(data, order), 3, num_workers=workers, collate_fn=collate)
        rows = [
            (int(i), x, y)
            for b in loader
            for i, x, y in zip(b["sample_id"], b["pixel_values"], b["labels"], strict=True)
        ]
        return {i: (x, y) for i, x, y in rows}

    one, other = batch([7, 1, 4, 9, 2]), batch([2, 9, 7, 4, 1])
    for row in one:
        assert torch.equal(one[row][0], other[row][0]) and torch.equal(one[row][1], other[row][1])
    for changed in (batch([7], seed=1), batch([7], epoch=4)):
        assert not torch.equal(changed[7][0], one[7][0])


def test_repeats_stand_together_and_are_augmented_anew():
    data = augmented(repeats=3, augment=image_augmentation("randaugment"))
    order = list(data.sampler)
    rows = [index % len(data) for index in order]
    assert len(order) == len(set(order)) == len(data) == 50
    assert rows[0] == rows[1] == rows[2] != rows[3] and len(set(rows)) == 17
    again = augmented(repeats=3)
    assert list(again.sampler) == order
    again.set_epoch(1)
    assert list(again.sampler) != order
    pairs = [[data[index] for index in order[i : i + 2]] for i in range(0, 48, 3)]
    assert all(one["sample_id"] == two["sample_id"] for one, two in pairs)
    alike = [torch.equal(one["pixel_values"], two["pixel_values"]) for one, two in pairs]
    assert alike.count(True) <= 4  # RandAugment draws the identity twice now and then
    assert augmented().sampler is None


def test_erasing_greys_a_rectangle():
    torch.manual_seed(0)
    erased = TF.pil_to_tensor(image_augmentation(random_erasing=1.0)(solid(0)))
    grey = (erased == torch.tensor(GREY).view(3, 1, 1)).all(0)
    assert ((erased == 0).all(0) | grey).all() and 0.02 * 1024 - 40 < grey.sum() < 0.34 * 1024
    assert (TF.pil_to_tensor(image_augmentation()(solid(7))) == 7).all()


def test_cutout_greys_the_part_of_a_square_that_lies_in_the_image():
    torch.manual_seed(0)
    cutout, seen = image_augmentation(cutout=8), torch.zeros(32, 32, dtype=torch.bool)
    for _ in range(400):
        grey = TF.pil_to_tensor(cutout(solid(0)))[0] == GREY[0]
        rows, columns = grey.any(1).sum(), grey.any(0).sum()
        assert 4 <= rows <= 8 and 4 <= columns <= 8 and grey.sum() == rows * columns
        seen |= grey
    assert seen.all()


@pytest.mark.parametrize(
    "words, said",
    [
        ("--auto_augment randaug", "auto_augment is 'randaug': choose one of randaugment, cifar10, imagenet"),
        ("--random_erasing 2", "random_erasing is 2.0: use a probability"),
        ("--mixup_alpha -1", "mixup_alpha is -1.0: use a number of at least 0"),
        ("--repeated_augmentation 0", "repeated_augmentation is 0: use a number of at least 1"),
        ("--mixup_alpha 0.2 --loss dkd", "dkd needs a single label: use --partition top1, or --loss gdkd"),
        ("--cutmix_alpha 1 --loss kd --gradient_scaling 2", "--gradient_scaling needs a single label: leave it out"),
        ("--mixup_alpha 0.2 --loss nkd+rld", "rld needs a single label: use --loss gdkd"),
        ("--mixup_alpha 0.2 --class_k 1 2", "--class_k needs a single label: use --threshold, or one --k"),
    ],
)
def test_bad_options(words, said):
    with pytest.raises(InputError, match=said):
        parse(["--teacher", "big", "--student", "small", *words.split(), "--output_dir", "x"])


def test_columns_that_no_model_takes_are_left_out():
    rows = load_data("digits").train.select(range(2)).add_column("note", ["a", "b"])
    view = View(transformers.ViTImageProcessor(size={"height": 8, "width": 8}))
    sample = Augmented(rows, TrainTransform(view), seed=0)[1]
    assert sample.keys() == {"pixel_values", "labels", "sample_id"}
