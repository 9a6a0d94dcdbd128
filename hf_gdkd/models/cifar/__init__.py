"""The networks of the paper's CIFAR-100 experiments, for 32 x 32 images, as models of transformers.

They are `cifar/resnet8x4` and so on in the command. After `import hf_gdkd.models.cifar.modeling`, `AutoConfig` and
`AutoModelForImageClassification` of transformers load what was saved of them.
"""

from difflib import get_close_matches

from ...errors import InputError

NAMES = (
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet8x4", "resnet32x4"),
    *("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"),
    *("vgg8", "vgg11", "vgg13", "vgg16", "vgg19"),
    *("MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet18", "ResNet50"),
)


def canonical(name: str) -> str:
    """A network's name as the paper spells it; case is ignored.

    Raises:
        InputError: there is no such network.
    """
    spelled = {known.lower(): known for known in NAMES}
    if name.lower() in spelled:
        return spelled[name.lower()]
    close = get_close_matches(name.lower(), spelled, n=3)
    hint = f"did you mean {', '.join(spelled[c] for c in close)}?" if close else f"choose one of {', '.join(NAMES)}."
    raise InputError(f"there is no CIFAR network {name!r}: {hint}")
