"""DeepLabV3 and PSPNet as models of transformers: the configuration, the network, and their registration.

Source: the networks of CIRKD (Yang et al., CVPR 2022), which the paper's Cityscapes experiment compares on, but for the
stem of the ResNets: theirs has three 3 x 3 convolutions, here it is the 7 x 7 one that timm has weights for.
"""

from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import Conv2dNormActivation
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput

from . import canonical


class SegmentationNetworkConfig(PreTrainedConfig):
    """The configuration of a `SegmentationNetwork`.

    Args:
        architecture: one of `hf_gdkd.models.segmentation_networks.NAMES`, case ignored.
        output_stride: pixels of the image for one of the feature map, 8, 16 or 32; later layers are dilated instead.
        use_auxiliary_head: whether the last layer but one has a head of its own, for training.
        auxiliary_loss_weight: weight of that head's loss.
        semantic_loss_ignore_index: the label of pixels that do not count.
        **kwargs: as in every configuration, such as `num_labels` or `id2label`.

    Raises:
        InputError: there is no such architecture.
    """

    model_type = "gdkd_segmentation"

    architecture: str = "deeplabv3_resnet18"
    output_stride: int = 8
    use_auxiliary_head: bool = True
    auxiliary_loss_weight: float = 0.4
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs: Any) -> None:
        self.architecture = canonical(self.architecture)
        super().__post_init__(**kwargs)


class PyramidPooling(nn.Module):
    """A feature map (N, C, H, W) beside its means over 1 x 1, 2 x 2, 3 x 3 and 6 x 6 cells: (N, 2 C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(cells), Conv2dNormActivation(channels, channels // 4, 1))
            for cells in (1, 2, 3, 6)
        )

    def forward(self, x: Tensor) -> Tensor:
        means = [F.interpolate(scale(x), x.shape[2:], mode="bilinear", align_corners=True) for scale in self.scales]
        return torch.cat([x, *means], 1)


class SegmentationNetwork(PreTrainedModel):
    """DeepLabV3 (Chen et al., arXiv 1706.05587) or PSPNet (Zhao et al., CVPR 2017) on a dilated ResNet of timm.

    The decode head is atrous spatial pyramid pooling at the rates 12, 24 and 36, or pyramid pooling, then a
    convolution of 3 x 3, dropout of 0.1 and the classifier; it has 128 channels on ResNet-18 and 34, else 256.
    Initialisation: the backbone Kaiming normal, fan out; the heads as PyTorch's own.
    """

    config_class = SegmentationNetworkConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"

    def __init__(self, config: SegmentationNetworkConfig) -> None:
        super().__init__(config)
        head, backbone = config.architecture.split("_")
        layers = {"features_only": True, "out_indices": (1, 2, 3, 4), "output_stride": config.output_stride}
        self.backbone = timm.create_model(backbone, **layers)
        *_, third, last = self.backbone.feature_info.channels()
        width = 128 if last == 512 else 256
        context = ASPP(last, (12, 24, 36), width) if head == "deeplabv3" else PyramidPooling(last)
        self.decode_head = nn.Sequential(
            context,
            Conv2dNormActivation(width if head == "deeplabv3" else 2 * last, width),
            nn.Dropout(0.1),
            nn.Conv2d(width, config.num_labels, 1),
        )
        self.auxiliary_head = FCNHead(third, config.num_labels) if config.use_auxiliary_head else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, nn.Conv2d):
            return super()._init_weights(module)
        if any(module is each for each in self.backbone.modules()):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            module.reset_parameters()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SemanticSegmenterOutput | tuple[Tensor, ...]:
        """Logits (N, num_labels, H / stride, W / stride) of normalised images (N, 3, H, W), rounded up.

        With labels (N, H, W) the cross-entropy of the enlarged logits, with the weighted one of the auxiliary head, is
        `loss`; with `output_hidden_states` the outputs of the four layers are `hidden_states`; without `return_dict`
        a tuple of what there is.
        """
        features = self.backbone(pixel_values)
        logits = self.decode_head(features[-1])
        auxiliary = self.auxiliary_head(features[-2]) if self.auxiliary_head is not None else None
        loss = None
        if labels is not None:
            loss = self._cross_entropy(logits, labels)
            if auxiliary is not None:
                loss = loss + self.config.auxiliary_loss_weight * self._cross_entropy(auxiliary, labels)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=tuple(features) if wanted else None)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        enlarged = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
        return F.cross_entropy(enlarged, labels, ignore_index=self.config.semantic_loss_ignore_index)


AutoConfig.register(SegmentationNetworkConfig.model_type, SegmentationNetworkConfig)
AutoModelForSemanticSegmentation.register(SegmentationNetworkConfig, SegmentationNetwork)
