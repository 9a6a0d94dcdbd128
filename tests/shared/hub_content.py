"""Small models of the real architectures and small versions of the data sets, under the ids users name.

    with HubServer() as hub:
        tiny_models(hub)
        tiny_datasets(hub)

Everything is made here from seeds: nothing is downloaded. An image of ImageNet's class i is a coloured
pattern that depends on i alone, plus noise, so that the fitted models recognise it in every data set. Sizes
are 32 pixels instead of 224; classes, names, normalisation, crops and formats are as on the real Hub.
"""

import functools
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

CLASSES = range(0, 1000, 10)  # ImageNet-1k indices of the 100 classes that have images
SPLITS = {"train": 4, "validation": 2, "test": 2}  # images a class
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@functools.cache
def synsets():
    """ImageNet-1k's 1,000 WordNet synsets ("n01440764"), in index order."""
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").label_names()


@functools.cache
def descriptions():
    """ImageNet-1k's 1,000 descriptions ("tench, Tinca tinca"), in index order; "crane" stands twice."""
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").label_descriptions()


def imagenet_labels():
    """The label names of ILSVRC/imagenet-1k: the descriptions, with the second "crane" (517) as "crane2".

    `datasets` refuses a ClassLabel with a name that stands twice.
    """
    return [*descriptions()[:517], "crane2", *descriptions()[518:]]


def picture(index, seed, height=40, width=48):
    """[height, width, 3] uint8 of ImageNet class `index`: 4 x 4 coloured blocks and noise.

    The pattern is its own mirror image, so that a flip keeps the class.
    """
    half = np.random.default_rng(index).integers(0, 256, (4, 2, 3))
    blocks = np.concatenate([half, half[:, ::-1]], axis=1)
    large = blocks.repeat(height // 4, axis=0).repeat(width // 4, axis=1)
    noise = np.random.default_rng([index, seed]).normal(0, 20, large.shape)
    return (large + noise).clip(0, 255).astype(np.uint8)


def encode(pixels, kind="JPEG"):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


# -- models ------------------------------------------------------------------------------------------------


def tiny_models(hub, trained=True):
    """Seed the four models below with safetensors; returns {id: sha}. Under 2 MB each, 1,000 outputs.

    trained: the classifier is fitted to the pictures by least squares (top-1 on the tiny mini-imagenet about
    98, 97, 98 and 50 %); otherwise it is random (1 %, chance).
    """
    return {repo_id: hub.add("models", repo_id, files) for repo_id, files in model_files(trained).items()}


@functools.cache
def model_files(trained=True):
    """{id: {path: bytes}}; the first call imports transformers and takes some seconds."""
    import torch
    from transformers import (
        ConvNextImageProcessor,
        DeiTImageProcessor,
        ResNetConfig,
        ViTConfig,
        ViTImageProcessor,
    )
    from transformers import ResNetForImageClassification as ResNet
    from transformers import ViTForImageClassification as ViT

    names = dict(enumerate(descriptions()))
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    vit = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 2, "initializer_range": 0.2} | labels
    resnet = {"layer_type": "basic", "embedding_size": 16, "depths": [1, 1, 1, 1]} | labels
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    imagenet = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD), "resample": 3}
    made = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = ViTConfig(hidden_size=64, num_attention_heads=2, intermediate_size=128, **vit)
        made["google/vit-base-patch16-224"] = (
            ViT(base),
            ViTImageProcessor(size={"height": 32, "width": 32}, resample=2, **half),
        )
        tiny = ViTConfig(hidden_size=48, num_attention_heads=3, intermediate_size=96, **vit)
        crop = {"height": 32, "width": 32}
        made["facebook/deit-tiny-patch16-224"] = (
            ViT(tiny),
            DeiTImageProcessor(size={"height": 36, "width": 36}, crop_size=crop, **imagenet),
        )
        made["microsoft/resnet-18"] = (
            ResNet(ResNetConfig(hidden_sizes=[16, 24, 32, 64], **resnet)),
            ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875, **imagenet),
        )
        files = {name: saved(*pair, trained) for name, pair in made.items()}
        files["timm/resnet18.a1_in1k"] = timm_files(trained)
    return files


def saved(model, processor, trained):
    if trained:
        fit_head(model, lambda images: processor(images=images, return_tensors="pt")["pixel_values"])
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return files | {"README.md": card(license="apache-2.0", tags=["vision"], library_name="transformers")}


def timm_files(trained):
    """timm's own layout: native parameter names, config.json with `architecture` and `pretrained_cfg`."""
    import timm
    from safetensors.torch import save
    from timm.data import create_transform
    from torch import stack

    args = {"channels": [16, 24, 32, 64]}
    model = timm.create_model("resnet18", num_classes=1000, **args)
    data = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic", "crop_pct": 0.95}
    config = {"tag": "a1_in1k", "num_classes": 1000, "input_size": (3, 32, 32), "pool_size": (1, 1), **data}
    config |= {"fixed_input_size": False, "crop_mode": "center", "first_conv": "conv1", "classifier": "fc"}
    if trained:
        transform = create_transform(input_size=32, **data)
        fit_head(model, lambda images: stack([transform(image) for image in images]))
    top = {"architecture": "resnet18", "num_classes": 1000, "num_features": 64, "global_pool": "avg"}
    return {
        "config.json": json.dumps(top | {"model_args": args, "pretrained_cfg": config}, indent=2).encode(),
        "model.safetensors": save({k: v.contiguous() for k, v in model.state_dict().items()}, {"format": "pt"}),
        "README.md": card(license="apache-2.0", tags=["timm"], library_name="timm"),
    }


def fit_head(model, transform):
    """Ridge regression of the classes on the frozen, random features, into the model's last linear layer."""
    import torch

    per_class, sharpness = 8, 20.0
    images = [Image.fromarray(picture(i, 1000 + seed)) for i in CLASSES for seed in range(per_class)]
    head = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    seen = []
    hook = head.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    with torch.no_grad():
        model.eval()(transform(images))
        hook.remove()
        features = seen[0].flatten(1).double()
        mean, std = features.mean(0), features.std(0) + 1e-6
        inputs = torch.cat([(features - mean) / std, torch.ones(len(images), 1)], dim=1)
        targets = torch.zeros(len(images), 1000, dtype=torch.float64)
        targets[range(len(images)), [i for i in CLASSES for _ in range(per_class)]] = sharpness
        ridge = 0.1 * torch.eye(inputs.shape[1], dtype=torch.float64)
        solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets)
        head.weight.copy_((solution[:-1] / std[:, None]).T)
        head.bias.copy_(solution[-1] - (mean / std) @ solution[:-1])


# -- data sets ---------------------------------------------------------------------------------------------


def tiny_datasets(hub):
    """Seed the three data sets below; returns {id: sha}.

    - `timm/mini-imagenet`: parquet, 100 classes named by synset, open.
    - `ILSVRC/imagenet-1k`: parquet, 1,000 classes, `imagenet_labels` (only CLASSES have images),
      test labels are -1; gated: `hub.accepted.add(("datasets", "ILSVRC/imagenet-1k"))` opens it.
    - `tester/tiny-imagefolder`: png files in folders, 10 classes named by the first word of the description.
    """
    return {
        name: hub.add("datasets", name, files, gated=name == "ILSVRC/imagenet-1k")
        for name, files in dataset_files().items()
    }


@functools.cache
def dataset_files():
    """{id: {path: bytes}}."""
    mini = {
        split: [(encode(picture(i, 10 * k + n)), label) for label, i in enumerate(CLASSES) for n in range(count)]
        for k, (split, count) in enumerate(SPLITS.items())
    }
    full = {
        "train": [(data, CLASSES[label]) for data, label in mini["train"]],
        "validation": [(data, CLASSES[label]) for data, label in mini["validation"]],
        "test": [(data, -1) for data, _ in mini["test"]],
    }
    folder = {
        f"{split}/{descriptions()[i].split(',')[0].replace(' ', '_')}/{n}.png": encode(picture(i, 50 + n), "PNG")
        for split, numbers in {"train": range(4), "test": range(4, 6)}.items()
        for i in CLASSES[:10]
        for n in numbers
    }
    gate = {"extra_gated_prompt": "You have been granted access for non-commercial research only."}
    return {
        "timm/mini-imagenet": parquet_dataset(mini, [synsets()[i] for i in CLASSES]),
        "ILSVRC/imagenet-1k": parquet_dataset(full, imagenet_labels(), **gate),
        "tester/tiny-imagefolder": folder | {"README.md": card(license="mit")},
    }


def parquet_dataset(splits, names, **metadata):
    """Files of an image classification data set: a parquet file a split, and the card with its features.

    splits: {split: [(encoded image, label)]}. The features stand in the card and in each file's schema.
    """
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    kept = {"huggingface": json.dumps({"info": {"features": features}})}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": image, "label": pa.int64()}, metadata=kept)
    files, sizes = {}, []
    for split, rows in splits.items():
        images = [{"bytes": data, "path": f"{split}_{n}.jpg"} for n, (data, _) in enumerate(rows)]
        table = pa.table({"image": images, "label": [label for _, label in rows]}, schema=schema)
        out = io.BytesIO()
        pq.write_table(table, out)
        files[f"data/{split}-00000-of-00001.parquet"] = out.getvalue()
        sizes.append({"name": split, "num_bytes": table.nbytes, "num_examples": len(rows)})
    label = {"class_label": {"names": {str(i): name for i, name in enumerate(names)}}}
    rows = [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": label}]
    info = {"features": rows, "splits": sizes, "download_size": sum(map(len, files.values()))}
    paths = [{"split": split, "path": f"data/{split}-*"} for split in splits]
    files["README.md"] = card(
        task_categories=["image-classification"],
        dataset_info=info | {"dataset_size": sum(size["num_bytes"] for size in sizes)},
        configs=[{"config_name": "default", "data_files": paths}],
        **metadata,
    )
    return files


def card(**metadata):
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\nMade for tests.\n".encode()
