"""Small pictures composed into scenes with a mask: a class a pixel, background, and 255 around every object."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from scipy import ndimage

from .masks import IGNORE
from .sources import digit_arrays

BACKGROUND = 0  # the other classes are those of the objects plus one
PLACES = 5  # that are tried for an object, to take the one that covers least of the others
DIGIT_CLASSES = ["background", *map(str, range(10))]
INK = 96  # from this grey value on a pixel is of its object


def compose(
    objects: Sequence[np.ndarray],
    labels: Sequence[int],
    *,
    size: int,
    sides: tuple[int, int],
    random: np.random.Generator,
    filled: bool = False,
) -> tuple[PILImage.Image, PILImage.Image]:
    """A grey scene of `size` x `size` pixels and its mask.

    Args:
        objects: grey pictures, white on black; later ones may hide parts of earlier ones.
        labels: their classes, from 0; in the mask they are one more.
        sides: smallest and largest side of an object in the scene, in pixels.
        random: what sizes, places and the grey of the background are drawn from.
        filled: dark parts inside an object belong to it.
    """
    scene = np.full((size, size), random.integers(0, 64), np.uint8)
    mask = np.full((size, size), BACKGROUND, np.uint8)
    for pixels, label in zip(objects, labels, strict=True):
        side = int(random.integers(sides[0], sides[1] + 1))
        grey = np.pad(np.asarray(PILImage.fromarray(pixels).resize((side, side), PILImage.Resampling.BILINEAR)), 1)
        solid = grey >= INK if not filled else ndimage.binary_fill_holes(grey >= INK // 3)
        around = ndimage.binary_dilation(solid, np.ones((3, 3), bool))
        places = random.integers(0, size - side - 1, (PLACES, 2))
        covered = [int((mask[y : y + side + 2, x : x + side + 2][around] != BACKGROUND).sum()) for y, x in places]
        y, x = places[int(np.argmin(covered))]
        there = (slice(y, y + side + 2), slice(x, x + side + 2))
        scene[there] = np.where(solid, grey, np.where(around, np.maximum(grey, scene[there]), scene[there]))
        mask[there] = np.where(solid, label + 1, np.where(around, IGNORE, mask[there]))
    return PILImage.fromarray(scene), PILImage.fromarray(mask)


def scenes(
    pixels: np.ndarray,
    labels: np.ndarray,
    *,
    count: int,
    objects: tuple[int, int],
    seed: int,
    size: int,
    sides: tuple[int, int],
    filled: bool = False,
) -> Dataset:
    """`count` scenes of `objects` (least, most) pictures each, as columns `image` and `label`.

    Every picture (N, h, w) is used once before any is used again.
    """
    random = np.random.default_rng(seed)
    numbers = random.integers(objects[0], objects[1] + 1, count)
    rounds = -(-int(numbers.sum()) // len(pixels))
    order = np.concatenate([random.permutation(len(pixels)) for _ in range(rounds)])
    made = [
        compose(pixels[some], labels[some], size=size, sides=sides, random=random, filled=filled)
        for some in np.split(order[: numbers.sum()], np.cumsum(numbers)[:-1])
    ]
    images, masks = zip(*made, strict=True)
    return Dataset.from_dict(
        {"image": list(images), "label": list(masks)}, Features({"image": Image(), "label": Image()})
    )


def digit_scenes(split: str) -> Dataset:
    """Scenes of 48 x 48 pixels with 3 to 4 of scikit-learn's scanned digits: 500 to train, 100 to test.

    The digits of the two splits are those of the splits of `digits`; always the same.
    """
    pixels, labels = digit_arrays()[split]
    sizes = {"train": {"count": 500, "seed": 0}, "test": {"count": 100, "seed": 1}}
    return scenes(pixels, labels, objects=(3, 4), size=48, sides=(14, 20), **sizes[split])
