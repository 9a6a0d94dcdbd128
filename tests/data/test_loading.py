"""Data sets from folders made here, and each model's view against its image processor run alone."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image, Value
from hub_content import tiny_datasets
from hub_server import HubServer
from PIL import Image as PILImage
from sklearn.datasets import load_digits as sklearn_digits
from timm.data import create_transform
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_gdkd.data.columns import check_labels
from hf_gdkd.data.datasets import Viewed, collate
from hf_gdkd.data.decoding import check_images
from hf_gdkd.data.loading import load_data
from hf_gdkd.data.views import EvalTransform, TrainTransform, View
from hf_gdkd.errors import InputError


def picture(seed, size=(24, 20), mode="RGB"):
    """Smooth noise of [width, height]: a resized crop still looks like it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return PILImage.fromarray(coarse).resize(size, PILImage.Resampling.BICUBIC).convert(mode)


def imagefolder(folder, **splits):
    """splits: {split: {class: number of images}}."""
    for split, classes in splits.items():
        for k, (name, count) in enumerate(classes.items()):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                picture(100 * k + i).save(folder / split / name / f"{i:03}.png")
    return str(folder)


def parquet(folder, features, **splits):
    """splits: {split: columns}."""
    folder.mkdir(exist_ok=True)
    for split, columns in splits.items():
        Dataset.from_dict(columns, Features(features)).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def refusal(call, *words):
    """The text of an InputError: one sentence with all the words."""
    with pytest.raises(InputError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and text.endswith("."), text
    for word in words:
        assert word in text, text
    return text


# -- data sets ---------------------------------------------------------------------------------------------


def test_digits():
    data, again, original = load_data("digits"), load_data("digits", seed=7), sklearn_digits()
    assert (len(data.train), len(data.eval), data.eval_split) == (1437, 360, "test")
    assert data.label_names == list("0123456789") and not data.flip
    assert set(np.bincount(data.eval["labels"][:])) <= {35, 36, 37}
    assert data.train["labels"][:] == again.train["labels"][:]
    pixels = {
        split: np.stack([np.asarray(i) for i in rows["image"]])
        for split, rows in vars(data).items()
        if split in ("train", "eval")
    }
    assert np.array_equal(pixels["train"], np.stack([np.asarray(i) for i in again.train["image"]]))
    found = {
        (p.tobytes(), y)
        for s, rows in (("train", data.train), ("eval", data.eval))
        for p, y in zip(np.rint(pixels[s] * (16 / 255)).astype(np.uint8), rows["labels"], strict=True)
    }
    assert found == {(p.astype(np.uint8).tobytes(), y) for p, y in zip(original.images, original.target, strict=True)}


def test_imagefolder_with_two_splits(tmp_path):
    data = load_data(imagefolder(tmp_path, train={"cat": 3, "dog": 2}, test={"cat": 1, "dog": 1}))
    assert (len(data.train), len(data.eval), data.eval_split) == (5, 2, "test")
    assert data.label_names == ["cat", "dog"] and data.flip
    assert data.train.column_names == ["image", "labels", "sample_id"]
    assert data.train[0]["image"].size == (24, 20)


def test_validation_comes_before_test(tmp_path):
    folder = imagefolder(tmp_path, train={"a": 1, "b": 1}, validation={"a": 1, "b": 1}, test={"a": 1, "b": 1})
    assert load_data(folder).eval_split == "validation"
    assert load_data(folder, eval_split="test").eval_split == "test"
    assert load_data(folder, train_split="validation").eval_split == "test"


def test_train_only_holds_out_a_stratified_tenth(tmp_path):
    folder = imagefolder(tmp_path, train={"a": 30, "b": 20})
    data, again = load_data(folder), load_data(folder)
    assert (len(data.train), len(data.eval), data.eval_split) == (45, 5, "train (held-out tenth)")
    assert np.bincount(data.eval["labels"][:]).tolist() == [3, 2]
    assert data.eval["labels"][:] == again.eval["labels"][:]
    pixels = [{np.asarray(image).tobytes() for image in rows["image"]} for rows in (data.train, data.eval)]
    assert not pixels[0] & pixels[1] and len(pixels[0]) + len(pixels[1]) == 50


@pytest.mark.parametrize("classes", [{"a": 30, "b": 1}, {str(i): 2 for i in range(12)}], ids=["one image", "many"])
def test_held_out_of_small_classes_is_not_stratified(tmp_path, classes):
    data = load_data(imagefolder(tmp_path, train=classes))
    assert len(data.eval) == np.ceil(sum(classes.values()) / 10)
    assert len(data.train) + len(data.eval) == sum(classes.values())
    assert data.label_names == sorted(classes)


def test_rows_are_drawn_by_seed_stratified_and_never_twice(tmp_path):
    """Same seed, same rows; the rows to evaluate do not depend on how many are trained on."""
    folder = imagefolder(tmp_path, train={"a": 30, "b": 20}, test={"a": 1, "b": 1})

    def drawn(**options):
        data = load_data(folder, **options)
        images = [{np.asarray(image).tobytes() for image in rows["image"]} for rows in (data.train, data.eval)]
        return data, *images

    data, train, held_out = drawn(train_rows=20, validation_rows=10, seed=3)
    assert (len(train), len(held_out), data.eval_split) == (20, 10, "train (10 rows held out)")
    assert [np.bincount(rows["labels"][:]).tolist() for rows in (data.train, data.eval)] == [[12, 8], [6, 4]]
    assert not train & held_out
    assert drawn(train_rows=20, validation_rows=10, seed=3)[1:] == (train, held_out)
    assert drawn(train_rows=20, validation_rows=10, seed=4)[1] != train
    _, more, same = drawn(validation_rows=10, seed=3)
    assert same == held_out and more > train and len(more) == 40
    data, some, _ = drawn(train_rows=20, seed=3)
    assert len(some) == 20 and data.eval_split == "test" and drawn(train_rows=20, seed=4)[1] != some
    refusal(lambda: load_data(folder, train_rows=41, validation_rows=10), "50 rows", "train_rows 41")


def test_unlabelled_folder(tmp_path):
    for i in range(10):
        picture(i).save(tmp_path / f"{i}.png")
    data = load_data(str(tmp_path))
    assert data.label_names is None and data.train.column_names == ["image", "sample_id"]
    assert (len(data.train), len(data.eval)) == (9, 1)


def test_parquet_with_other_column_names(tmp_path):
    """As CIFAR-100 names them."""
    features = {"img": Image(), "fine_label": ClassLabel(names=["x", "y"]), "coarse_label": ClassLabel(names=["z"])}
    rows = {"img": [picture(0), picture(1)], "fine_label": [1, 0], "coarse_label": [0, 0]}
    folder = parquet(tmp_path / "d", features, train=rows, test=rows)
    data = load_data(folder)
    assert data.label_names == ["x", "y"] and data.train["labels"][:] == [1, 0]
    assert load_data(folder, label_column="coarse_label").label_names == ["z"]
    assert load_data(folder, image_column="img").train.column_names == ["image", "labels", "sample_id"]


def test_text_labels_are_encoded_over_all_splits(tmp_path):
    """The test split lacks a class; the indices must not shift."""
    features = {"image": Image(), "label": Value("string")}
    train = {"image": [picture(i) for i in range(3)], "label": ["cat", "ant", "bee"]}
    test = {"image": [picture(i) for i in range(2)], "label": ["cat", "bee"]}
    data = load_data(parquet(tmp_path / "d", features, train=train, test=test))
    assert data.label_names == ["ant", "bee", "cat"]
    assert (data.train["labels"][:], data.eval["labels"][:]) == ([2, 0, 1], [2, 1])
    assert isinstance(data.train.features["image"], Image) and data.eval[1]["image"].size == (24, 20)


def test_whole_number_labels_keep_their_order(tmp_path):
    """ "10" comes after "2"; numbers from 0 on stay what they are."""
    features = {"image": Image(), "label": Value("int64")}
    train = {"image": [picture(0)] * 12, "label": list(range(12))[::-1]}
    test = {"image": [picture(0)], "label": [10]}
    data = load_data(parquet(tmp_path / "d", features, train=train, test=test))
    assert data.label_names == [str(i) for i in range(12)]
    assert data.train["labels"][:] == train["label"] and data.eval["labels"][:] == [10]


def test_no_label_column(tmp_path):
    rows = {"image": [picture(0)] * 10, "caption": ["?"] * 10}
    folder = parquet(tmp_path / "d", {"image": Image(), "caption": Value("string")}, train=rows)
    assert load_data(folder).label_names is None
    refusal(lambda: load_data(folder, label_column="kind"), "kind", "image (Image), caption (string)", "--label_column")


def test_no_image_column(tmp_path):
    rows = {"text": ["a", "b"], "label": [0, 1]}
    folder = parquet(tmp_path / "d", {"text": Value("string"), "label": Value("int64")}, train=rows)
    refusal(lambda: load_data(folder), "text (string), label (int64)", "--image_column")
    refusal(lambda: load_data(folder, image_column="photo"), "image column photo among its columns text")


def test_two_image_columns(tmp_path):
    rows = {"left": [picture(0)] * 10, "right": [picture(1)] * 10}
    folder = parquet(tmp_path / "d", {"left": Image(), "right": Image()}, train=rows)
    refusal(lambda: load_data(folder), "left (Image), right (Image)", "--image_column")
    assert load_data(folder, image_column="right").train.column_names == ["image", "sample_id"]


@pytest.mark.parametrize("feature", [ClassLabel(names=["a", "b"]), Value("int64")], ids=["ClassLabel", "int64"])
@pytest.mark.parametrize("bad, said", [(-1, "-1"), (None, "None")])
def test_labels_out_of_range(tmp_path, feature, bad, said):
    good = {"image": [picture(0)] * 4, "label": [0, 1, 1, 0]}
    features = {"image": Image(), "label": feature}
    folder = parquet(tmp_path / "d", features, train=good, test=good | {"label": [0, 1, bad, bad]})
    refusal(lambda: load_data(folder), "split test", "2 labels", f"first {said} in row 2")


def test_a_label_past_the_last_class():
    """Which the library refuses itself where it reads the classes with the rows."""
    rows = Dataset.from_dict({"labels": [0, 1, 2]})
    check_labels("it", "test", rows, 3)
    refusal(lambda: check_labels("it", "test", rows, 2), "1 labels are outside 0 to 1, the first 2 in row 2")


def test_labels_of_another_type(tmp_path):
    rows = {"image": [picture(0)] * 10, "label": [0.5] * 10}
    folder = parquet(tmp_path / "d", {"image": Image(), "label": Value("float32")}, train=rows)
    refusal(lambda: load_data(folder), "float32", "--label_column")


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./none", "~/none", "a/b/c", "nobody/nothing", "digitz"], ids=lambda name: name
)
def test_unknown_data_set(name):
    refusal(lambda: load_data(name), name)


def test_without_a_network_what_is_missing_is_named():
    refusal(lambda: load_data("nobody/nothing"), "nobody/nothing", "HF_HUB_OFFLINE", "it is not in the cache")


def test_empty_folder(tmp_path):
    refusal(lambda: load_data(str(tmp_path)), str(tmp_path))


def test_corrupt_parquet(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no more PAR1")
    refusal(lambda: load_data(str(tmp_path)), str(tmp_path))


def test_unknown_split(tmp_path):
    folder = imagefolder(tmp_path, train={"a": 1, "b": 1}, test={"a": 1, "b": 1})
    refusal(lambda: load_data(folder, train_split="training"), "'training'", "train, test")
    refusal(lambda: load_data(folder, eval_split="dev"), "'dev'", "train, test")


def test_hub_data_set(tmp_path):
    """A Hub on loopback, in another process; the test split is not downloaded, and the cache serves without the Hub."""
    code = (
        "import json; from hf_gdkd.data.loading import load_data; d = load_data('timm/mini-imagenet');"
        "print(json.dumps([len(d.label_names), d.label_names[0], len(d.train), len(d.eval), d.eval_split,"
        "d.train[0]['image'].size]))"
    )
    with HubServer() as hub:
        tiny_datasets(hub)
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | hub.env(home=tmp_path)
        done = subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True, timeout=120)
        read = [target for _, target, _ in hub.log if "resolve" in target and ".parquet" in target]
        offline = subprocess.run(
            [sys.executable, "-c", code], env=env | {"HF_HUB_OFFLINE": "1"}, text=True, capture_output=True, timeout=120
        )
    for process in (done, offline):
        assert process.returncode == 0, process.stderr
        expected = [100, "n01440764", 400, 200, "validation", [48, 40]]
        assert json.loads(process.stdout.splitlines()[-1]) == expected
    assert read and not any("test" in target for target in read)


# -- images that cannot be read ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"no image at all"],
    ids=["empty", "truncated", "text"],
)
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_unreadable_image(tmp_path, damage, kind):
    (tmp_path / "train" / "a").mkdir(parents=True)
    for i in range(5):
        PILImage.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
            tmp_path / "train" / "a" / f"{i}.{kind}"
        )
    broken = tmp_path / "train" / "a" / f"3.{kind}"
    broken.write_bytes(damage(broken.read_bytes()))
    rows = Dataset.from_dict(
        {"image": [str(tmp_path / "train" / "a" / f"{i}.{kind}") for i in range(5)]}, Features({"image": Image()})
    )
    refusal(lambda: check_images(rows, "data set x: "), "data set x: image in row 3", str(broken))


def test_missing_image():
    rows = Dataset.from_dict({"image": [picture(0), None]}, Features({"image": Image()}))
    refusal(lambda: check_images(rows, "train: "), "train: image in row 1")


def test_readable_images():
    data = load_data("digits")
    assert check_images(data.eval, "test: ") == (data.eval, 0)


# -- views -------------------------------------------------------------------------------------------------

SQUARE, EDGE, CROP = {"height": 18, "width": 14}, {"shortest_edge": 20}, {"height": 16, "width": 16}
PROCESSORS = {
    "ViT": ({"size": SQUARE}, {}),
    "ViT lanczos": ({"size": SQUARE, "resample": 1}, {}),
    "ViT no rescale": ({"size": SQUARE, "do_rescale": False}, {}),
    "ViT no normalize": ({"size": SQUARE, "do_normalize": False}, {}),
    "ViT neither": ({"size": SQUARE, "do_normalize": False, "do_rescale": False}, {}),
    "DeiT": ({"size": {"height": 20, "width": 20}, "crop_size": CROP}, {"size": CROP, "do_center_crop": False}),
    "CLIP": ({"size": EDGE, "crop_size": CROP}, {"size": CROP, "do_center_crop": False}),
    "Bit": ({"size": EDGE, "crop_size": CROP}, {"size": CROP, "do_center_crop": False}),
    "ConvNext": ({"size": {"shortest_edge": 16}, "crop_pct": 0.875}, None),
    "ConvNext large": ({"size": {"shortest_edge": 384}}, {}),
    "MobileNetV2": ({"size": EDGE, "crop_size": CROP}, {"size": CROP, "do_center_crop": False}),
    "MobileViT": ({"size": EDGE, "crop_size": CROP}, {"size": CROP, "do_center_crop": False}),
    "EfficientNet": ({"size": SQUARE}, {}),
    "Siglip": ({"size": SQUARE}, {}),
}  # fmt: skip


def make_processor(name, backend):
    kind, options = name.split()[0], PROCESSORS[name][0]
    return getattr(transformers, f"{kind}ImageProcessor{backend}")(**options)


def timm_processor(**changes):
    config = timm.get_pretrained_cfg("resnet18.a1_in1k").to_dict()
    return TimmWrapperImageProcessor(config | {"input_size": (3, 16, 16)} | changes, architecture="resnet18")


@pytest.mark.parametrize("backend", ["", "Pil"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_exact_is_the_processor(name, backend):
    processor = make_processor(name, backend)
    images = [picture(0), picture(1, (40, 31)), picture(2, (17, 17))]
    alone = torch.stack([processor(image, return_tensors="pt")["pixel_values"][0].float() for image in images])
    torch.testing.assert_close(View(processor).exact(images), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["", "Pil"])
@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(24, 20), (9, 31), (70, 50)])
def test_squash_is_the_processor_without_its_crop(name, backend, size):
    processor, (_, without_crop) = make_processor(name, backend), PROCESSORS[name]
    view = View(processor)
    if without_crop is None:  # ConvNext below 384 always crops: a crop of the final size is only normalised
        crop, without_crop = picture(0, view.size[::-1]), {"do_resize": False}
    else:
        crop = picture(0, size)
    alone = processor(crop, return_tensors="pt", **without_crop)["pixel_values"].float()
    assert alone.shape[2:] == view.size
    torch.testing.assert_close(view.squash([crop]), alone, rtol=0, atol=1e-5 * max(1.0, alone.abs().max().item()))


@pytest.mark.parametrize("backend", ["", "Pil"])
@pytest.mark.parametrize("sizes", [[(24, 20)] * 3, [(24, 20), (9, 31), (70, 50)]], ids=["alike", "unlike"])
def test_crops_together_are_the_crops_alone(backend, sizes):
    view = View(make_processor("ViT", backend))
    crops = [picture(i, size) for i, size in enumerate(sizes)]
    assert torch.equal(view.squash(crops), torch.cat([view.squash([crop]) for crop in crops]))


@pytest.mark.parametrize("size", [(24, 20), (9, 31), (70, 50)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_timm_view(size, interpolation):
    processor, crop = timm_processor(interpolation=interpolation), picture(0, size)
    view = View(processor)
    assert torch.equal(view.exact([crop])[0], processor.val_transforms(crop))
    squash = create_transform(**processor.data_config | {"crop_pct": 1.0, "crop_mode": "squash"}, is_training=False)
    torch.testing.assert_close(view.squash([crop])[0], squash(crop), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PROCESSORS)
def test_renormalize_gives_the_other_view(name):
    one = View(make_processor(name, ""))
    options = PROCESSORS[name][0] | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.1], "do_normalize": True}
    other = View(type(one.processor)(**options))
    assert one.same_geometry(other)
    crops = [picture(0), picture(1)]
    for a, b in ((one, other), (other, one)):
        scale, shift = a.renormalize_to(b)
        renormalized = a.squash(crops) * scale.view(3, 1, 1) + shift.view(3, 1, 1)
        expected = b.squash(crops)
        torch.testing.assert_close(renormalized, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


def test_same_geometry_and_normalization():
    vit = View(transformers.ViTImageProcessor(size=CROP))
    assert vit.same_geometry(View(transformers.ViTImageProcessor(size=CROP, image_mean=[0.1] * 3)))
    assert vit.same_normalization(View(transformers.ViTImageProcessor(size=SQUARE)))
    assert not vit.same_normalization(View(transformers.ViTImageProcessor(size=CROP, image_mean=[0.49] * 3)))
    assert not vit.same_normalization(View(transformers.ViTImageProcessor(size=CROP, image_std=[0.49] * 3)))
    for other in (
        transformers.ViTImageProcessor(size=SQUARE),
        transformers.ViTImageProcessor(size=CROP, resample=3),
        transformers.ViTImageProcessorPil(size=CROP),
        timm_processor(interpolation="bilinear"),
    ):
        assert not vit.same_geometry(View(other))
    blue_first = transformers.MobileViTImageProcessor(size=EDGE, crop_size=CROP)
    red_first = transformers.MobileViTImageProcessor(size=EDGE, crop_size=CROP, do_flip_channel_order=False)
    assert not View(blue_first).same_geometry(View(red_first))


def test_crops_are_resized_once_for_views_that_differ_in_mean_and_std_alone(monkeypatch):
    views = [View(transformers.ViTImageProcessor(size=CROP, image_mean=[mean] * 3)) for mean in (0.1, 0.4)]
    views.append(View(transformers.ViTImageProcessor(size={"height": 7, "width": 9})))
    crops, resized = [picture(0), picture(1)], []
    expected = [view.squash(crops) for view in views]
    resize = View.resize
    monkeypatch.setattr(View, "resize", lambda view, crops: resized.append(view) or resize(view, crops))
    seen = TrainTransform(views[0], {"one": views[1], "other": views[2]}).see(crops)
    torch.testing.assert_close(list(seen.values()), expected, rtol=0, atol=0)
    assert resized == [views[0], views[2]]


def test_view_of_patches_is_refused():
    refusal(lambda: View(transformers.Siglip2ImageProcessor()), "Siglip2ImageProcessor", "(256, 768)")


# -- transforms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", [transformers.ViTImageProcessor, transformers.ViTImageProcessorPil, None])
def test_student_and_teacher_see_one_crop(teacher):
    """The teacher's 32 x 32, halved, are the student's 16 x 16; another crop or flip is far from them."""
    half, double = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, {"height": 32, "width": 32}
    student = View(transformers.ViTImageProcessor(size=CROP, **half))
    other = (
        teacher(size=double, **half)
        if teacher
        else timm_processor(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    )
    transform = TrainTransform(student, {"teacher_pixel_values": View(other)}, crop_scale=0.3)
    torch.manual_seed(0)
    batch = transform({"image": [picture(0, (64, 64))] * 24, "labels": list(range(24))})
    assert batch["labels"] == list(range(24))
    large, small = batch["teacher_pixel_values"], batch["pixel_values"]
    assert large.shape == (24, 3, 32, 32) and small.shape == (24, 3, 16, 16)
    halved = F.interpolate(large, scale_factor=0.5, mode="bilinear", antialias=True)
    distance = (halved[:, None] - small[None]).abs().mean((2, 3, 4))  # of each to each
    assert distance.diagonal().max() < 0.06
    assert distance.argmin(1).tolist() == list(range(24))
    flipped = (halved - small.flip(-1)).abs().mean((1, 2, 3))
    assert (flipped > distance.diagonal()).all()


def test_half_are_flipped_unless_off():
    view, image = View(transformers.ViTImageProcessor(size=CROP)), picture(0, (16, 16))
    whole = view.squash([image])[0]
    for flip in (True, False):
        torch.manual_seed(0)
        pixels = TrainTransform(view, crop_scale=1.0, flip=flip)({"image": [image] * 200})["pixel_values"]
        same = (pixels == whole).flatten(1).all(1)
        turned = (pixels == whole.flip(-1)).flatten(1).all(1)
        assert (same | turned).all()
        assert 60 < turned.sum() < 140 if flip else same.all()


def test_crop_keeps_the_share_it_promises():
    transform = TrainTransform(View(transformers.ViTImageProcessor(size=CROP)), crop_scale=0.6)
    torch.manual_seed(0)
    areas = [np.prod(transform.crop(picture(0, (60, 50))).size) / 3000 for _ in range(200)]
    assert min(areas) > 0.55 and max(areas) <= 1.0


def test_seed_repeats_the_crops():
    view = View(transformers.ViTImageProcessor(size=CROP))
    twice = []
    for _ in range(2):
        torch.manual_seed(3)
        twice.append(TrainTransform(view)({"image": [picture(0)] * 4})["pixel_values"])
    assert torch.equal(*twice)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    view, image = View(transformers.ViTImageProcessor(size=CROP)), picture(0, mode=mode)
    for transform in (TrainTransform(view), EvalTransform(view)):
        assert transform({"image": [image, picture(1)]})["pixel_values"].shape == (2, 3, 16, 16)
    exact = EvalTransform(view)({"image": [image]})["pixel_values"]
    torch.testing.assert_close(exact, view.exact([image.convert("RGB")]), rtol=0, atol=0)
    whole = TrainTransform(view, crop_scale=1.0, flip=False)({"image": [picture(0, (16, 16), mode)]})["pixel_values"]
    torch.testing.assert_close(whole, view.squash([picture(0, (16, 16), mode).convert("RGB")]), rtol=0, atol=0)


def test_evaluation_sees_what_the_processor_makes():
    """Its resizing and its centre crop: nothing is squashed."""
    processor, images = make_processor("DeiT", ""), [picture(0), picture(1, (40, 31))]
    seen = EvalTransform(View(processor))({"image": images})["pixel_values"]
    expected = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images])
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("separate", [False, True])
def test_batches_of_a_loader(workers, separate):
    data = load_data("digits")
    view = View(transformers.ViTImageProcessor(size=CROP))
    teachers = {"teacher_pixel_values": View(timm_processor())} if separate else None
    rows = Viewed(data.eval, TrainTransform(view, teachers, flip=False))
    batches = list(DataLoader(rows, 100, num_workers=workers, collate_fn=collate))
    assert [len(batch["labels"]) for batch in batches] == [100, 100, 100, 60]
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == data.eval["labels"][:]
    assert all(batch["pixel_values"].shape[1:] == (3, 16, 16) for batch in batches)
    assert all(("teacher_pixel_values" in batch) is separate for batch in batches)


def test_one_row_is_as_in_the_batch():
    view = View(transformers.ViTImageProcessor(size=CROP))
    rows = Viewed(load_data("digits").eval, EvalTransform(view))
    batch = collate(rows.__getitems__([3, 4]))
    assert torch.equal(rows[4]["pixel_values"], batch["pixel_values"][1])
    assert batch["labels"].dtype == torch.int64


def test_collate_takes_soft_labels():
    samples = [{"pixel_values": torch.zeros(3, 2, 2), "soft": [0.25, 0.75]} for _ in range(2)]
    assert collate(samples)["soft"].shape == (2, 2)


def test_a_table_of_paths_alone_is_read(tmp_path):
    """datasets cannot take the last column out of a table and put another in its place."""
    for i in range(2):
        picture(i).save(tmp_path / f"{i}.png")
    (tmp_path / "train.csv").write_text("image\n0.png\n1.png\n")
    (tmp_path / "test.csv").write_text("image\n1.png\n")
    data = load_data(str(tmp_path), ignore_labels=True)
    assert data.train[1]["image"].tobytes() == data.eval[0]["image"].tobytes() == picture(1).tobytes()
