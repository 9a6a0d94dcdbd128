"""Images of more than 8 bits, and very long ones: scaled or cropped by a rule that is said, or refused by name."""

import resource

import numpy as np
import pytest
import torch
import transformers
from pictures import encode, picture, stored
from PIL import Image as PILImage

import hf_gdkd.data.decoding
from hf_gdkd.data.datasets import Viewed
from hf_gdkd.data.decoding import ImageError, open_image, to_rgb
from hf_gdkd.data.views import EvalTransform, TrainTransform, View

GREY = np.arange(256, dtype=np.float64).reshape(16, 16)  # what every image below is, in another range


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(hf_gdkd.data.decoding, "_warned", set())


@pytest.mark.parametrize("dtype, white, kind, said", [
    (np.float32, 1, "TIFF", "floats up to 1: white is taken to be 1"),
    (np.float32, 255, "TIFF", "white is taken to be 255"),
    (np.float32, 65535, "TIFF", ""),
    (np.uint16, 4095, "PNG", "16-bit values up to 4095: white is taken to be 4095"),
    (np.uint16, 4095, "TIFF", "white is taken to be 4095"),
    (np.uint16, 255, "PNG", "white is taken to be 255"),
    (np.uint16, 65535, "PNG", ""),
    (np.int32, 255, "TIFF", "32-bit values up to 255"),
    (np.int32, 4095, "TIFF", "white is taken to be 4095"),
    (np.int32, 65535, "TIFF", ""),
    (np.int32, 2**31 - 1, "TIFF", "white is taken to be 2147483647"),
])  # fmt: skip
def test_values_are_scaled_by_their_range(dtype, white, kind, said, caplog):
    values = GREY / 255 * white
    values = values.astype(dtype) if dtype == np.float32 else np.rint(values).astype(dtype)
    data = stored(encode(PILImage.fromarray(values), kind))
    for row in (3, 4):
        pixels = np.asarray(open_image(data, f"image in row {row}"))
        assert (pixels == GREY[..., None]).all()
    assert len(caplog.records) == bool(said) and said in caplog.text
    assert not said or "image in row 3 has" in caplog.text


@pytest.mark.parametrize("values, said", [
    ([[-1.0, 1.0]], "values from -1 to 1"),
    ([[0.0, 1e6]], "values from 0 to 1e+06"),
    ([[0.0, float("nan")]], "values from nan to nan"),
    ([[0.0, float("inf")]], "values from 0 to inf"),
])  # fmt: skip
def test_other_ranges_are_refused(values, said):
    image = PILImage.fromarray(np.array(values, np.float32))
    with pytest.raises(ImageError) as caught:
        open_image(stored(encode(image, "TIFF"), "x.tif"), "image in row 7")
    assert str(caught.value).startswith(f"image in row 7 (x.tif) has {said}, expected 0 to 1, 0 to 255 or 0 to 65535")
    with pytest.raises(ImageError, match="scale the images to 8 bits"):
        to_rgb(image)


def png_of_16_bits(pixels):
    """Pillow reads RGB of 16 bits and does not write it."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_colours_of_12_bits_are_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3))
    assert (np.asarray(open_image(stored(png_of_16_bits(pixels * 257)))) == pixels).all()
    (tmp_path / "x.png").write_bytes(png_of_16_bits(pixels * 16))
    for image in (stored(png_of_16_bits(pixels * 16)), stored(None, str(tmp_path / "x.png"))):
        with pytest.raises(ImageError, match="colours of 16 bits with no value above 4095"):
            open_image(image)


# -- very long images ------------------------------------------------------------------------------------------

LONG = {
    "crop": transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    "pil": transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    "squash": transformers.ViTImageProcessor(size={"height": 16, "width": 16}),
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("tall", [False, True])
def test_a_crop_of_a_long_image_is_that_of_all_of_it(kind, tall):
    """17 times as long as high, and so cut before it is resized."""
    image = PILImage.fromarray(np.asarray(picture(0, (17 * 20, 20))))
    image = image.transpose(PILImage.Transpose.ROTATE_90) if tall else image
    alone = LONG[kind](image, return_tensors="pt")["pixel_values"].float()
    torch.testing.assert_close(View(LONG[kind]).exact([image]), alone, rtol=0, atol=1e-5)


def test_a_very_long_image_is_cheap_and_its_row_is_named(caplog):
    """30,000 pixels in a row, 202 bytes: resized so that it is 224 high they were 12 GB."""
    rows = [{"image": stored(encode(PILImage.new("L", (1, 30_000), 9))), "labels": 0, "sample_id": 41}]
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    view = View(processor)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for transform in (EvalTransform(view), TrainTransform(view)):
        assert Viewed(rows, transform)[0]["pixel_values"].shape == (3, 224, 224)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 500
    assert "image in row 41 has 1 x 30000 pixels: a model that crops images sees only the middle" in caplog.text
