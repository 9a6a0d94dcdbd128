"""Crops from a padded image: windows of its own size, every one as likely."""

from collections import Counter

import numpy as np
import torch
from PIL import Image

from hf_gdkd.data.views import TrainTransform, View
from hf_gdkd.models.loading import load_processor


def test_crops_are_the_windows_of_the_padded_image():
    pixels = np.arange(1, 2 * 3 * 3 + 1, dtype=np.uint8).reshape(2, 3, 3)
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)))
    windows = [padded[top : top + 2, left : left + 3].tobytes() for top in range(3) for left in range(3)]
    assert len(set(windows)) == 9
    transform = TrainTransform(View(load_processor("cifar/resnet8")), crop_padding=1, flip=False)
    torch.manual_seed(0)
    seen = Counter(np.asarray(transform.crop(Image.fromarray(pixels))).tobytes() for _ in range(900))
    assert set(seen) == set(windows) and min(seen.values()) > 60  # 100 each, standard deviation 9


def test_a_crop_of_a_cifar_image_is_not_resized():
    view = View(load_processor("cifar/resnet8"))
    transform = TrainTransform(view, crop_padding=4, flip=False)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    torch.manual_seed(1)
    crop = transform.crop(image)
    torch.manual_seed(1)
    seen = transform({"image": [image]})["pixel_values"]
    assert crop.size == (32, 32)
    torch.testing.assert_close(seen, view.exact([crop]))
