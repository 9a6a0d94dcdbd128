"""Images of every bad kind: what can be read is read right, what cannot is one sentence or a count."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, Features, Image, Value
from pictures import colours, encode, picture, stored, words
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

import hf_gdkd.data.datasets
import hf_gdkd.data.decoding
import hf_gdkd.data.opened
from hf_gdkd.commands.running import run
from hf_gdkd.data.datasets import Augmented, Viewed, collate
from hf_gdkd.data.decoding import ImageError, check_images, open_image
from hf_gdkd.data.opened import Opened
from hf_gdkd.data.views import EvalTransform, TrainTransform, View
from hf_gdkd.errors import InputError
from hf_gdkd.scripts.distill import main as distill

WORKERS = pytest.mark.parametrize("workers", [0, 2])


def bomb():
    """A PNG whose header promises 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    ends = struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", 0xAE426082)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + ends


def half(data):
    return data[: len(data) // 2]


BAD = {
    "truncated JPEG": half(encode(picture(0), "JPEG")),
    "truncated PNG": half(encode(picture(0))),
    "zero bytes": b"",
    "text": b"no image at all",
    "bomb": bomb(),
}


# -- what can be read ---------------------------------------------------------------------------------------


def test_sixteen_bits_are_scaled():
    """v * 257 is to 65535 what v is to 255; Pillow's own conversion makes all but the darkest white."""
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        image = open_image(stored(encode(PILImage.fromarray(values * 257), kind)))
        assert image.mode == "RGB" and (np.asarray(image) == values[..., None]).all()
    between = PILImage.fromarray(np.array([[0, 128, 129, 65535]], np.uint16))
    assert np.asarray(open_image(stored(encode(between))))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_grey_is_three_equal_channels():
    pixels = np.asarray(open_image(stored(encode(colours("L")))))
    assert (pixels == np.asarray(colours("L"))[..., None]).all()


def test_transparency_is_dropped():
    """The colours stay: what transformers and timm do, convert("RGB")."""
    image = colours()
    image.putalpha(PILImage.fromarray(np.arange(108, dtype=np.uint8).reshape(9, 12)))
    assert (np.asarray(open_image(stored(encode(image)))) == np.asarray(colours())).all()


def test_cmyk_is_the_complement():
    image = PILImage.new("CMYK", (8, 8), (255, 0, 100, 0))
    pixels = np.asarray(open_image(stored(encode(image, "TIFF"))))
    assert (pixels == (0, 255, 155)).all()
    again = np.asarray(open_image(stored(encode(image, "JPEG", quality=100))))
    assert abs(again.astype(int) - pixels).max() < 8


# What a camera writes that holds orientation 1 to 8, by the sides of the scene that its first row and column are.
WRITTEN = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.swapaxes(0, 1),  # left, top
    6: lambda upright: upright.swapaxes(0, 1)[::-1],  # right, top
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],  # left, bottom
}


@pytest.mark.parametrize("orientation", WRITTEN)
def test_exif_turns_the_image_upright(orientation):
    upright = np.asarray(colours())
    image, exif = PILImage.fromarray(np.ascontiguousarray(WRITTEN[orientation](upright))), PILImage.Exif()
    exif[274] = orientation
    assert (np.asarray(open_image(stored(encode(image, exif=exif)))) == upright).all()


PROCESSORS = {
    "torchvision": transformers.ViTImageProcessor,
    "pil": transformers.ViTImageProcessorPil,
    "crop": transformers.CLIPImageProcessor,
}


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 3), (2, 2), (3, 3), (1, 40)])
@pytest.mark.parametrize("name", [*PROCESSORS, "timm"])
def test_tiny_images_are_resized(name, size):
    """One colour stays one colour, whatever the processor makes of so few pixels."""
    if name == "timm":
        import timm

        config = timm.get_pretrained_cfg("resnet18.a1_in1k").to_dict() | {"input_size": (3, 16, 16)}
        processor = TimmWrapperImageProcessor(config, architecture="resnet18")
    else:
        edge = {"shortest_edge": 16} if name == "crop" else {"height": 16, "width": 16}
        crop = {"crop_size": {"height": 16, "width": 16}} if name == "crop" else {}
        processor = PROCESSORS[name](size=edge, **crop)
    view = View(processor)
    rows = [{"image": stored(encode(PILImage.new("RGB", at, (200, 100, 50)))), "labels": 0} for at in (size, (30, 20))]
    for data in (Viewed(rows, EvalTransform(view)), Augmented(rows, TrainTransform(view), seed=0)):
        tiny, large = (data[i]["pixel_values"] for i in range(2))
        assert tiny.shape == (3, 16, 16)
        torch.testing.assert_close(tiny, large, rtol=0, atol=1e-4)


# -- what cannot --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_one_sentence(kind):
    with pytest.raises(ImageError) as caught:
        open_image(stored(BAD[kind], "cats/7.jpg"), "image in row 7")
    text = str(caught.value)
    assert text.startswith("image in row 7 (cats/7.jpg) cannot be read (")
    assert text.endswith("with --on_bad_image skip.") and "\n" not in text and "0x" not in text


def test_a_missing_image_is_one_sentence(tmp_path):
    for absent in (None, stored(None), stored(None, str(tmp_path / "gone.png"))):
        with pytest.raises(ImageError, match=r"image.* cannot be read \("):
            open_image(absent)


def test_a_broken_connection_is_no_bad_image():
    class Remote(dict):
        def __getitem__(self, key):
            if key == "bytes":
                raise ConnectionError

    with pytest.raises(ConnectionError):
        open_image(Remote())


@pytest.mark.parametrize("workers, augmented", [(0, True), (0, False), (1, True), (1, False)])
def test_the_sentence_comes_through_a_worker(workers, augmented):
    """torch wraps what a worker raises; the sentence names row and file all the same."""
    rows = Dataset.from_dict(
        {"image": [stored(encode(picture(i)), f"{i}.png") if i != 3 else stored(b"", "3.png") for i in range(5)]},
        Features({"image": Image()}),
    )
    view = View(transformers.ViTImageProcessor(size={"height": 16, "width": 16}))
    data = Augmented(rows, TrainTransform(view), seed=0) if augmented else Viewed(rows, EvalTransform(view))
    loader = DataLoader(data, 2, num_workers=workers, collate_fn=collate, timeout=60 if workers else 0)
    with pytest.raises(InputError) as caught:
        list(loader)
    assert str(caught.value).startswith("image in row 3 (3.png) cannot be read (it is in no image format): remove")
    assert "\n" not in str(caught.value)


# -- data sets with bad images -------------------------------------------------------------------------------


def pictures(bad=()):
    rows = [stored(encode(picture(i)), f"{i}.png") for i in range(12)]
    for row in bad:
        rows[row] = stored(b"", f"{row}.png")
    return Dataset.from_dict(
        {"image": rows, "labels": list(range(12))}, Features({"image": Image(), "labels": Value("int64")})
    )


@pytest.mark.parametrize("less, opened", [(0, 12), (1, 24)], ids=["kept", "too many"])
def test_small_images_are_decoded_once(monkeypatch, less, opened):
    """Where all of them fit into KEPT_BYTES; what is handed out can be changed by its taker."""
    calls = []
    room = 12 * (3 * 30 * 25 + hf_gdkd.data.opened.KEPT_OVERHEAD)
    monkeypatch.setattr(hf_gdkd.data.opened, "KEPT_BYTES", room - less)
    monkeypatch.setattr(hf_gdkd.data.opened, "open_image", lambda *words: calls.append(1) or open_image(*words))
    rows = Opened(pictures())
    first = [rows[i] for i in range(12)]
    pixels = [np.asarray(sample.pop("image")) for sample in first]
    again = [np.asarray(rows[i]["image"]) for i in range(12)]
    assert len(calls) == opened
    np.testing.assert_array_equal(pixels, again)


def test_check_images_leaves_out_and_counts():
    rows, bad = check_images(pictures(bad=(0, 5, 11)), "x: ", skip=True)
    assert bad == 3 and rows["labels"][:] == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    with pytest.raises(InputError, match=r"^x: image in row 5 \(5\.png\) cannot be read"):
        check_images(pictures(bad=(5, 11)), "x: ")
    with pytest.raises(InputError, match="x: none of its 12 images can be read"):
        check_images(pictures(bad=range(12)), "x: ", skip=True)


def test_a_large_data_set_is_searched_only_when_bad_images_are_skipped(monkeypatch):
    monkeypatch.setattr(hf_gdkd.data.decoding, "CHECKED_ROWS", 11)
    rows = pictures(bad=(5,))
    assert check_images(rows, "x: ") == (rows, 0)
    assert check_images(rows, "x: ", skip=True)[1] == 1


# -- whole runs -----------------------------------------------------------------------------------------------


def scene(label, seed):
    """A class is a colour."""
    pixels = np.random.default_rng(seed).normal((60 + 70 * label, 200 - 70 * label, 90), 30, (20, 24, 3))
    return PILImage.fromarray(pixels.clip(0, 255).astype(np.uint8))


def folder_of_200(folder, broken=True):
    """150 and 50 images of two classes, ten of odd kinds; not `broken`: without the four that nobody can read."""
    odd = {
        ("train", 0): lambda image: half(encode(image, "JPEG", quality=95)),
        ("train", 1): lambda image: b"",
        ("train", 149): lambda image: half(encode(image, "JPEG", quality=95)),
        ("test", 10): lambda image: b"",
        ("train", 20): lambda image: encode(image.resize((1, 1)), "JPEG"),
        ("train", 21): lambda image: encode(image.convert("L"), "JPEG"),
        ("train", 22): lambda image: encode(image.convert("CMYK"), "JPEG"),
        ("train", 23): lambda image: encode(image.convert("RGBA")),
        ("train", 24): lambda image: encode(PILImage.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)),
        ("test", 30): lambda image: encode(
            image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
        ),
    }
    for split, count in (("train", 150), ("test", 50)):
        for i in range(count):
            make = odd.get((split, i), lambda image: encode(image, "JPEG"))
            data = make(scene(i % 2, i))
            if broken or (split, i) not in list(odd)[:4]:
                path = folder / split / "ab"[i % 2] / f"{i:03}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    return str(folder)


def weights(folder):
    return (Path(folder) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def alike():
    """All rows are augmented alike: it goes by the original row, which is another where there are bad images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_gdkd.data.datasets, "draw_seed", lambda *numbers: 0)
        yield


@pytest.fixture(scope="module")
def clean(tmp_path_factory, alike):
    """A run on the 196 images that can be read: its metrics and its student."""
    folder = tmp_path_factory.mktemp("clean")
    metrics = distill(words(folder_of_200(folder / "data", broken=False), folder / "run"))
    return metrics, weights(folder / "run")


@WORKERS
def test_a_run_with_bad_images_is_the_run_without_them(tmp_path, clean, alike, workers, capsys):
    more = ["--on_bad_image", "skip", "--dataloader_num_workers", str(workers)]
    metrics = distill(words(folder_of_200(tmp_path / "data"), tmp_path / "run", *more))
    assert metrics["bad_images"] == 4
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["bad_images"] == 4
    assert "4 images could not be read and were left out" in capsys.readouterr().out
    assert (metrics["top1"], metrics["nll"]) == (clean[0]["top1"], clean[0]["nll"])
    assert weights(tmp_path / "run") == clean[1]
    assert "bad_images" not in clean[0]


def test_a_run_stops_at_the_first_bad_image(tmp_path):
    with pytest.raises(InputError, match=r"split train: image in row 0 \(.*000\.jpg\) cannot be read"):
        distill(words(folder_of_200(tmp_path / "data"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@WORKERS
def test_a_large_data_set_stops_where_the_image_is_read(tmp_path, monkeypatch, workers, capsys):
    """It is not searched before; the run ends with one sentence and exit code 2 all the same."""
    monkeypatch.setattr(hf_gdkd.data.decoding, "CHECKED_ROWS", 0)
    argv = words(folder_of_200(tmp_path / "data"), tmp_path / "run", "--dataloader_num_workers", str(workers))
    with pytest.raises(SystemExit) as caught:
        run(lambda: distill(argv))
    assert caught.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"error: image in row \d+ \(.*\.jpg\) cannot be read \(.*\): remove .* skip\.", line), line
