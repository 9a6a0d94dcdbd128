"""A small Cityscapes and small SegFormers under the ids that users name, for a `HubServer`.

A street is a few stripes and boxes, each of a raw Cityscapes id whose colour depends on the id alone, plus noise; the
teacher's last layer is fitted to such colours, so that it recognises them. Nothing is downloaded.
"""

import functools
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hub_content import IMAGENET_MEAN, IMAGENET_STD, card, descriptions, encode, saved
from PIL import Image
from transformers import (
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from hf_gdkd.data.known_palettes import CITYSCAPES, CITYSCAPES_CLASSES

TEACHER, STUDENT = "nvidia/segformer-b5-finetuned-cityscapes-1024-1024", "nvidia/mit-b0"
DATASET = "Chris1/cityscapes"
HEIGHT, WIDTH = 64, 96
RAW = {name: i for name, i, _ in CITYSCAPES}
STREET = ["sky", "building", "vegetation", "road", "car", "person", "unlabeled"]  # unlabeled is no class
SPLITS = {"train": 8, "validation": 3, "test": 1}


def street(seed):
    """An image [height, width, 3] and the raw ids of its pixels [height, width], both uint8."""
    random = np.random.default_rng(seed)
    ids = np.empty((HEIGHT, WIDTH), np.uint8)
    edges = [0, *sorted(random.integers(8, HEIGHT - 8, 3).tolist()), HEIGHT]
    for name, top, bottom in zip(STREET[:4], edges[:-1], edges[1:], strict=True):
        ids[top:bottom] = RAW[name]
    for name in STREET[4:]:
        top, left = random.integers(0, HEIGHT - 16), random.integers(0, WIDTH - 24)
        ids[top : top + 16, left : left + 24] = RAW[name]
    colours = np.random.default_rng(0).integers(0, 256, (34, 3))
    return (colours[ids] + random.normal(0, 8, (HEIGHT, WIDTH, 3))).clip(0, 255).astype(np.uint8), ids


def street_models(hub):
    """Seed teacher and student; returns {id: sha}. The student is an encoder with a head for ImageNet's classes."""
    return {repo_id: hub.add("models", repo_id, files) for repo_id, files in _model_files().items()}


@functools.cache
def _model_files():
    size = {"num_attention_heads": [1, 1, 2, 2], "depths": [1] * 4, "decoder_hidden_size": 32}
    processor = SegformerImageProcessor(
        size={"height": 32, "width": 64}, image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        names = dict(enumerate(CITYSCAPES_CLASSES))
        teacher = SegformerForSemanticSegmentation(
            SegformerConfig(hidden_sizes=[24] * 4, id2label=names, initializer_range=0.2, **size)
        )
        _fit(teacher, processor)
        names = dict(enumerate(descriptions()))
        student = SegformerForImageClassification(SegformerConfig(hidden_sizes=[16] * 4, id2label=names, **size))
    return {TEACHER: saved(teacher, processor, False), STUDENT: saved(student, processor, False)}


@torch.no_grad()
def _fit(model, processor):
    """Ridge regression of the classes on the decoder's random features, into the last convolution."""
    seen, head = [], model.decode_head.classifier
    hook = head.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    images, ids = zip(*(street(1000 + seed) for seed in range(16)), strict=True)
    pixels = processor([Image.fromarray(image) for image in images], do_resize=False, return_tensors="pt")
    model.eval()(pixels["pixel_values"])
    hook.remove()
    features = seen[0].permute(0, 2, 3, 1).flatten(0, 2).double()
    raw = torch.from_numpy(np.stack(ids))[:, ::4, ::4].flatten()
    labels = torch.full((34,), -1)
    for i, name in enumerate(CITYSCAPES_CLASSES):
        labels[RAW[name]] = i
    labels = labels[raw.long()]
    features, labels = features[labels >= 0], labels[labels >= 0]
    inputs = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
    targets = torch.nn.functional.one_hot(labels, len(CITYSCAPES_CLASSES)).double()
    ridge = 1e-3 * torch.eye(inputs.shape[1], dtype=torch.float64)
    solution = 20 * torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets)
    head.weight.copy_(solution[:-1].T[:, :, None, None])
    head.bias.copy_(solution[-1])


def street_dataset(hub):
    """Seed the data set: parquet, columns image and semantic_segmentation (an image of raw ids); returns its sha."""
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    feature = '{"info": {"features": {"image": {"_type": "Image"}, "semantic_segmentation": {"_type": "Image"}}}}'
    schema = pa.schema({"image": image, "semantic_segmentation": image}, metadata={"huggingface": feature})
    files, seed = {}, 0
    for split, count in SPLITS.items():
        rows = {"image": [], "semantic_segmentation": []}
        for n in range(count):
            for column, pixels in zip(rows, street(seed), strict=True):
                rows[column].append({"bytes": encode(pixels, "PNG"), "path": f"{column}_{n}.png"})
            seed += 1
        out = io.BytesIO()
        pq.write_table(pa.table(rows, schema=schema), out)
        files[f"data/{split}-00000-of-00001.parquet"] = out.getvalue()
    paths = [{"split": split, "path": f"data/{split}-*"} for split in SPLITS]
    files["README.md"] = card(configs=[{"config_name": "default", "data_files": paths}])
    return hub.add("datasets", DATASET, files)
