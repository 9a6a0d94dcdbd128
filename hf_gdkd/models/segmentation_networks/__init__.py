"""The networks of the paper's Cityscapes experiment, DeepLabV3 and PSPNet on ResNets, as models of transformers.

They are `segmentation/deeplabv3_resnet18` and so on in the command. After `import
hf_gdkd.models.segmentation_networks.modeling`, `AutoConfig` and `AutoModelForSemanticSegmentation` of transformers
load what was saved of them.
"""

from difflib import get_close_matches

from ...errors import InputError

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")
NAMES = tuple(f"{head}_{backbone}" for head in ("deeplabv3", "pspnet") for backbone in BACKBONES)


def canonical(name: str) -> str:
    """A network's name in lower case.

    Raises:
        InputError: there is no such network.
    """
    if name.lower() in NAMES:
        return name.lower()
    close = get_close_matches(name.lower(), NAMES, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else f"choose one of {', '.join(NAMES)}."
    raise InputError(f"there is no segmentation network {name!r}: {hint}")


def backbone_id(name: str) -> str:
    """The repository on the Hub with the backbone of a network: timm's copy of torchvision's ImageNet weights."""
    return f"timm/{name.split('_')[1]}.tv_in1k"
