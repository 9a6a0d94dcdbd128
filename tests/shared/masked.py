"""Pictures with masks of stripes, and folders of them."""

import json

import numpy as np
from PIL import Image as PILImage

NAMES = ["sky", "road", "tree"]


def photo(seed=0, size=(9, 7)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return PILImage.fromarray(pixels)


def mask(values, mode="L", size=(9, 7)):
    """A mask of stripes, one for each value."""
    stripes = np.resize(np.array(values, np.int64), size[0])[None].repeat(size[1], axis=0)
    if mode == "RGB":
        return PILImage.fromarray(stripes.astype(np.uint8)[..., None].repeat(3, axis=-1))
    if mode in ("I", "I;16"):
        return PILImage.fromarray(stripes.astype(np.int32 if mode == "I" else np.uint16))
    image = PILImage.fromarray(stripes.astype(np.uint8))
    if mode == "P":
        image = image.convert("P")
        image.putpalette([channel for i in range(256) for channel in (i, 255 - i, 7)])
        image.frombytes(stripes.astype(np.uint8).tobytes())
    return image


def coloured(colours, size=(9, 7)):
    stripes = np.array([colours[i % len(colours)] for i in range(size[0])], np.uint8)
    return PILImage.fromarray(stripes[None].repeat(size[1], axis=0))


def folder(path, masks, names=NAMES, palette=None, kind="png", test=1, sizes=(9, 7)):
    """images/ and masks/ of a train split, and of a test split with the first mask again."""
    for split, some in (("train", masks), ("test", masks[:test])):
        for i, each in enumerate(some):
            for side, picture, suffix in (("images", photo(i, sizes), "jpg"), ("masks", each, kind)):
                (path / split / side).mkdir(parents=True, exist_ok=True)
                picture.save(path / split / side / f"{i}.{suffix}")
    if names is not None:
        (path / "id2label.json").write_text(json.dumps(dict(enumerate(names))))
    if palette is not None:
        (path / "palette.json").write_text(json.dumps(palette))
    return str(path)


def classes(rows, row=0):
    return np.unique(np.asarray(rows[row]["labels"])).tolist()
