"""The paper's CIFAR networks as models of transformers: the configuration, the classifier, and their registration."""

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from . import canonical
from .families import BUILD


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
        self.architecture = canonical(self.architecture)
        super().__post_init__(**kwargs)


class CifarForImageClassification(PreTrainedModel):
    """An image classifier for 32 x 32 images: stages, global average pooling, one linear layer.

    Initialisation as in the published code (see `families`): convolutions Kaiming normal, fan out, for ReLU, but
    PyTorch's own in the ShuffleNets; BatchNorm 1 and 0; the linear layer PyTorch's own in the ResNets and
    ShuffleNets, that with a bias of 0 in the wide ResNets, N(0, 0.01) with a bias of 0 in VGG and MobileNetV2.
    """

    config_class = CifarConfig
    main_input_name = "pixel_values"

    def __init__(self, config: CifarConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        network = BUILD[config.architecture]()
        self.stages, self.neck = nn.ModuleList(network.stages), network.neck
        self.classifier = nn.Linear(network.width, config.num_labels)
        self.conv_init, self.linear_init = network.conv_init, network.linear_init
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d) and self.conv_init == "kaiming":
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and self.linear_init == "normal":
            init.normal_(module.weight, std=0.01)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
        else:
            return super()._init_weights(module)
        own_bias = isinstance(module, nn.Linear) and self.linear_init == "torch"
        if module.bias is not None and not own_bias:
            init.zeros_(module.bias)

    def features(self, pixel_values: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """What feature distillation uses: the output of each stage (N, C, H, W), stem first, and the pooled feature.

        The pooled feature (N, D) is what the linear layer `classifier` takes.
        """
        hidden_states = []
        hidden = pixel_values
        for stage in self.stages:
            hidden = stage(hidden)
            hidden_states.append(hidden)
        return tuple(hidden_states), self.neck(hidden).mean((2, 3))

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutputWithNoAttention | tuple[Tensor, ...]:
        """Logits (N, num_labels) of normalised images (N, 3, 32, 32).

        With labels (N) the cross-entropy is `loss`; with `output_hidden_states` the outputs of the stages are
        `hidden_states`, as in `features`; without `return_dict` a tuple of what there is.
        """
        hidden_states, pooled = self.features(pixel_values)
        logits = self.classifier(pooled)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = ImageClassifierOutputWithNoAttention(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=hidden_states if wanted else None,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


AutoConfig.register(CifarConfig.model_type, CifarConfig)
AutoModelForImageClassification.register(CifarConfig, CifarForImageClassification)
