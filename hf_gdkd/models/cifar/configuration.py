"""CifarConfig: which of the paper's CIFAR networks a model is."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from . import canonical


class CifarConfig(PreTrainedConfig):
    """The configuration of a `CifarForImageClassification`.

    Args:
        architecture: one of `hf_gdkd.models.cifar.NAMES`, case ignored.
        **kwargs: as in every configuration, such as `num_labels` or `id2label`.

    Raises:
        InputError: there is no such architecture.
    """

    model_type = "gdkd_cifar"

    architecture: str = "resnet8x4"

    def __post_init__(self, **kwargs: Any) -> None:
        # The Auto classes look for the model of a configuration that they have: it is imported here, not earlier.
        from . import modeling  # noqa: F401

        self.architecture = canonical(self.architecture)
        super().__post_init__(**kwargs)


AutoConfig.register(CifarConfig.model_type, CifarConfig)
