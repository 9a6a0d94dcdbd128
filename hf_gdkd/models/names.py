"""What a model's name means: a folder, an id on the Hub, a short name, a timm id, a network of the paper."""

from __future__ import annotations

import os
from difflib import get_close_matches

from ..errors import InputError
from . import cifar, segmentation_networks

# Short names for the command line; each stands for a checkpoint with an ImageNet-1k head.
SHORT_NAMES = {
    "google/vit-base": "google/vit-base-patch16-224",
    "vit-base": "google/vit-base-patch16-224",
    "google/vit-large": "google/vit-large-patch16-224",
    "vit-large": "google/vit-large-patch16-224",
    "deit-tiny": "facebook/deit-tiny-patch16-224",
    "deit-small": "facebook/deit-small-patch16-224",
    "deit-base": "facebook/deit-base-patch16-224",
    "swin-tiny": "microsoft/swin-tiny-patch4-window7-224",
    "resnet-18": "microsoft/resnet-18",
    "resnet-50": "microsoft/resnet-50",
    "mobilenet-v2": "google/mobilenet_v2_1.0_224",
}

# What the names of the paper's networks begin with.
CIFAR = "cifar/"
SEGMENTATION = "segmentation/"


def resolve_name(name: str) -> str:
    """The local folder, the full Hub id or the network of the paper (`cifar/resnet8x4`) that a name means.

    Raises:
        InputError: a folder that does not exist, or a name that is neither a short name, a timm id, a network of the
            paper nor an `organization/name`; close matches are listed.
    """
    if os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, "config.json")):
            raise InputError(f"folder {name} has no config.json: use a folder that save_pretrained wrote.")
        return name
    if name.lower().startswith(CIFAR):
        return CIFAR + cifar.canonical(name[len(CIFAR) :])
    if name.lower().startswith(SEGMENTATION):
        return SEGMENTATION + segmentation_networks.canonical(name[len(SEGMENTATION) :])
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    import timm  # takes seconds and 150 MB, and what is above does without

    if timm.is_model(name.removeprefix("timm/")):
        architecture = name.removeprefix("timm/")
        try:
            tag = timm.get_pretrained_cfg(architecture).tag
        except RuntimeError as error:
            close = timm.list_pretrained(f"{architecture.split('.')[0]}.*")
            raise InputError(f"timm has no weights named {architecture}: choose one of {', '.join(close)}.") from error
        return f"timm/{architecture}" if "." in architecture or not tag else f"timm/{architecture}.{tag}"
    if name.count("/") == 1 and not name.startswith((".", "~", "/")):
        return name
    if "/" in name:
        raise InputError(f"there is no folder {name}: use an existing folder, or an id on the Hub (organization/name).")
    close = get_close_matches(name, [*SHORT_NAMES, *timm.list_models()], n=5)
    hint = f"did you mean {', '.join(close)}" if close else f"short names are {', '.join(SHORT_NAMES)}"
    raise InputError(f"unknown model {name!r}: {hint}? A Hub id is organization/name.")


def is_cifar_network(path: str) -> bool:
    """Whether a resolved name is one of the paper's CIFAR networks: an architecture without weights."""
    return path.startswith(CIFAR) and not os.path.isdir(path)


def is_segmentation_network(path: str) -> bool:
    """Whether a resolved name is DeepLabV3 or PSPNet: an architecture of which the backbone has weights."""
    return path.startswith(SEGMENTATION) and not os.path.isdir(path)


def is_own_network(path: str) -> bool:
    """Whether a resolved name is a network of the paper, which has to be trained before it can be used."""
    return is_cifar_network(path) or is_segmentation_network(path)


def weights_source(path: str) -> str | None:
    """The folder or the repository on the Hub that holds the weights of a resolved name; None if there are none."""
    if is_cifar_network(path):
        return None
    if is_segmentation_network(path):
        return segmentation_networks.backbone_id(path.removeprefix(SEGMENTATION))
    return path
