"""Large JPEGs are decoded at reduced size where a crop keeps enough of them, and an image once for all its crops."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from pictures import encode, stored
from PIL import Image as PILImage
from sklearn.datasets import load_sample_images
from transformers import ViTImageProcessor

import hf_gdkd.data.opened
from hf_gdkd.data import Augmented, AugmentedStream, TrainTransform, View
from hf_gdkd.data.decoding import ImageError, open_image
from hf_gdkd.data.opened import Picture
from hf_gdkd.data.views import decoded_side

PHOTOGRAPHS = [np.tile(pixels, (3, 2, 1)) for pixels in load_sample_images().images]  # 1281 x 1280
JPEGS = [encode(PILImage.fromarray(pixels), "JPEG", quality=90) for pixels in PHOTOGRAPHS]


def view(side=224):
    return View(ViTImageProcessor(size={"height": side, "width": side}))


@pytest.fixture
def decoded(monkeypatch):
    """The reductions at which images are decoded."""
    calls = []

    def noting(stored, what="image", reduction=1):
        calls.append(reduction)
        return open_image(stored, what, reduction)

    monkeypatch.setattr(hf_gdkd.data.opened, "open_image", noting)
    return calls


@pytest.mark.parametrize("file", JPEGS, ids=["china", "flower"])
def test_photographs_differ_within_the_tolerance(file):
    """Less than 1 of 255 in the mean and 12 at most, where edges need not move; else they move by half a pixel."""
    picture, student = Picture(stored(file)), view()
    for box in [(0, 0, 1024, 1024), (100, 200, 1150, 1030)]:
        reduced, whole = (picture.crop(*box, least=least) for least in (512, None))
        assert reduced.size == (box[3] // 2, box[2] // 2) and whole.size == (box[3], box[2])
        reduced, whole = (student.resize([crop]).float() for crop in (reduced, whole))
        assert 0 < (reduced - whole).abs().mean() < 0.9 and (reduced - whole).abs().max() <= 12
    odd = picture.crop(101, 201, 1100, 1043, least=512)
    assert odd.tobytes() == picture.decoded(2).crop((100, 50, 622, 600)).tobytes()


@pytest.mark.parametrize("side, least", [(32, 512), (256, 512), (257, 1024), (512, 1024), (513, None)])
def test_the_largest_input_decides(side, least):
    assert decoded_side([view(16), view(side)]) == least
    assert TrainTransform(view(16), {"teacher_pixel_values": view(side)}).least == least
    assert TrainTransform(view(side), exact_decoding=True).least is None


@pytest.mark.parametrize("kind, exact, reductions", [("JPEG", False, [2]), ("JPEG", True, [1]), ("PNG", False, [1])])
def test_only_jpegs_and_only_if_wanted(decoded, kind, exact, reductions):
    image = stored(encode(PILImage.new("RGB", (1030, 1100)), kind))
    TrainTransform(view(), crop_scale=1.0, exact_decoding=exact).crop(Picture(image))
    assert decoded == reductions
    decoded.clear()
    TrainTransform(view(), crop_padding=2, exact_decoding=exact).crop(Picture(image))
    assert decoded == [1]


def test_turned_and_broken_photographs():
    """The size is that of the upright image; what is wrong is said at any size, and with its row."""
    exif = PILImage.Exif()
    exif[0x0112] = 6
    lying = Picture(stored(encode(PILImage.fromarray(PHOTOGRAPHS[0][:1030]), "JPEG", exif=exif)))
    assert lying.size == (1030, 1280) == lying.decoded().size
    assert lying.crop(0, 0, 1280, 1030, least=512).size == (515, 640)
    cut = Picture(stored(JPEGS[0][:-5000]), "image in row 3")
    assert cut.size == (1280, 1281)
    with pytest.raises(ImageError, match=r"^image in row 3 cannot be read"):
        cut.crop(0, 0, 1281, 1280, least=512)


def rows():
    return Dataset.from_dict({"image": [stored(file) for file in JPEGS] * 2}, features=Features({"image": Image()}))


@pytest.mark.parametrize("kept", [0, 2**28])
@pytest.mark.parametrize("exact", [True, False])
def test_a_repeated_image_is_decoded_once(monkeypatch, decoded, kept, exact):
    """Once, or once at each size, for the views of a batch that follow each other; and each is what it is alone."""
    monkeypatch.setattr(hf_gdkd.data.opened, "KEPT_BYTES", kept)
    data = Augmented(rows(), TrainTransform(view(16), crop_scale=0.5, exact_decoding=exact), seed=0, repeats=3)
    order = [1, 5, 9, 2]  # three views of row 1, one of row 2
    together = data.__getitems__(order)
    assert decoded == ([1, 1] if exact else [2, 1, 1])
    for index, sample in zip(order, together, strict=True):
        torch.testing.assert_close(data[index], sample, rtol=0, atol=0)


def test_a_stream_reads_as_much(decoded):
    stream = AugmentedStream(
        rows().to_iterable_dataset().cast_column("image", Image(decode=False)),
        TrainTransform(view(16), crop_scale=1.0), seed=0,
    )  # fmt: skip
    assert next(iter(stream))["pixel_values"].shape == (3, 16, 16) and decoded[0] == 2
