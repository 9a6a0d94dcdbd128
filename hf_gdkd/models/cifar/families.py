"""The paper's CIFAR networks, stage by stage; blocks are torchvision's and timm's where those are the same.

Source: the networks of RepDistiller (Tian, Krishnan and Isola, ICLR 2020), which mdistiller (Zhao et al., CVPR 2022)
and the paper's authors took over. All are for images of 32 x 32 pixels.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.resnetv2 import DownsampleConv, PreActBasic
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.shufflenetv2 import InvertedResidual as ShuffleV2Block
from torchvision.models.shufflenetv2 import channel_shuffle
from torchvision.ops import Conv2dNormActivation


class Network(NamedTuple):
    """What stands before the classifier of a network, and how the published code initialises it."""

    stages: Sequence[nn.Module]
    """The first is the stem; the output of each is a hidden state."""
    neck: nn.Module
    """From the last stage's output to the feature map that is pooled."""
    width: int
    """Channels of that feature map."""
    conv_init: str = "kaiming"
    """"kaiming": normal, fan out, ReLU; "torch": PyTorch's own."""
    linear_init: str = "torch"
    """"torch": PyTorch's own; "zero_bias": that with a bias of 0; "normal": N(0, 0.01) with a bias of 0."""


def resnet(block: type[BasicBlock | Bottleneck], stem: int, widths: Sequence[int], depths: Sequence[int]) -> Network:
    """Residual network (He et al., arXiv 1512.03385): a 3 x 3 stem, stages of blocks, all but the first halving."""
    stages, channels = [Conv2dNormActivation(3, stem)], stem
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        blocks = []
        for j in range(depth):
            stride, out = 2 if i > 0 and j == 0 else 1, width * block.expansion
            same = stride == 1 and channels == out
            shortcut = None if same else Conv2dNormActivation(channels, out, 1, stride, activation_layer=None)
            blocks.append(block(channels, width, stride, shortcut))
            channels = out
        stages.append(nn.Sequential(*blocks))
    return Network(stages, nn.Identity(), channels)


def wide_resnet(depth: int, factor: int) -> Network:
    """Wide residual network (Zagoruyko and Komodakis, arXiv 1605.07146), pre-activated: hidden states are before it."""
    stages, channels = [create_conv2d(3, 16, 3)], 16
    layers = {"conv_layer": create_conv2d, "norm_layer": BatchNormAct2d, "proj_layer": DownsampleConv}
    for i, width in enumerate((16 * factor, 32 * factor, 64 * factor)):
        first = PreActBasic(channels, width, stride=1 if i == 0 else 2, **layers)
        stages.append(nn.Sequential(first, *(PreActBasic(width, **layers) for _ in range((depth - 4) // 6 - 1))))
        channels = width
    return Network(stages, BatchNormAct2d(channels), channels, linear_init="zero_bias")


def vgg(*depths: int) -> Network:
    """VGG (Simonyan and Zisserman, arXiv 1409.1556) with BatchNorm, three poolings, and one linear layer at its end."""
    stages, channels = [], 3
    for i, (width, depth) in enumerate(zip((64, 128, 256, 512, 512), depths, strict=True)):
        layers = [nn.MaxPool2d(2)] if i in (1, 2, 3) else []
        for _ in range(depth):
            layers.append(Conv2dNormActivation(channels, width, bias=True))
            channels = width
        stages.append(nn.Sequential(*layers))
    return Network(stages, nn.Identity(), channels, linear_init="normal")


def mobilenet_v2() -> Network:
    """MobileNetV2 (Sandler et al., arXiv 1801.04381) of half width, with ReLU, and halving once less."""
    stages, channels, blocks = [Conv2dNormActivation(3, 16, stride=2)], 16, []
    for i, (expansion, width, depth, stride) in enumerate(
        [(1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1)]
    ):
        for j in range(depth):
            blocks.append(InvertedResidual(channels, width, stride=stride if j == 0 else 1, exp_ratio=expansion))
            channels = width
        if i in (1, 2, 4, 6):  # those whose output is a hidden state
            stages.append(nn.Sequential(*blocks))
            blocks = []
    return Network(stages, Conv2dNormActivation(channels, 1280, 1), 1280, linear_init="normal")


class ShuffleV1Block(nn.Module):
    """ShuffleNet's unit (Zhang et al., arXiv 1707.01083): grouped 1 x 1, shuffle, depthwise 3 x 3, grouped 1 x 1.

    With stride 2 the pooled input is concatenated, else the input is added.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int = 3) -> None:
        super().__init__()
        added = out_channels - in_channels if stride == 2 else out_channels
        middle, self.stride = added // 4, stride
        self.groups = 1 if in_channels == 24 else groups  # the stem's channels are too few for groups
        self.reduce = Conv2dNormActivation(in_channels, middle, 1, groups=self.groups)
        self.depthwise = Conv2dNormActivation(middle, middle, 3, stride, groups=middle)
        self.expand = Conv2dNormActivation(middle, added, 1, groups=groups, activation_layer=None)
        self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.expand(self.depthwise(channel_shuffle(self.reduce(x), self.groups)))
        return torch.relu(torch.cat([out, self.pool(x)], 1) if self.stride == 2 else out + x)


def shufflenet_v1() -> Network:
    """ShuffleNet of 3 groups, its stem a 1 x 1 convolution."""
    stages, channels = [Conv2dNormActivation(3, 24, 1)], 24
    for width, depth in ((240, 4), (480, 8), (960, 4)):
        first = ShuffleV1Block(channels, width, 2)
        stages.append(nn.Sequential(first, *(ShuffleV1Block(width, width, 1) for _ in range(depth - 1))))
        channels = width
    return Network(stages, nn.Identity(), channels, conv_init="torch")


def shufflenet_v2() -> Network:
    """ShuffleNetV2 x 1 (Ma et al., arXiv 1807.11164), its stem a 1 x 1 convolution."""
    stages, channels = [Conv2dNormActivation(3, 24, 1)], 24
    for width, depth in ((116, 4), (232, 8), (464, 4)):
        first = ShuffleV2Block(channels, width, 2)
        stages.append(nn.Sequential(first, *(ShuffleV2Block(width, width, 1) for _ in range(depth - 1))))
        channels = width
    return Network(stages, Conv2dNormActivation(channels, 1024, 1), 1024, conv_init="torch")


_small = partial(resnet, BasicBlock, 16, (16, 32, 64))
_wide = partial(resnet, BasicBlock, 32, (64, 128, 256))
_large = partial(resnet, stem=64, widths=(64, 128, 256, 512))

BUILD = {
    **{f"resnet{6 * n + 2}": partial(_small, (n, n, n)) for n in (1, 2, 3, 5, 7, 9, 18)},
    **{f"resnet{6 * n + 2}x4": partial(_wide, (n, n, n)) for n in (1, 5)},
    **{f"wrn_{d}_{f}": partial(wide_resnet, d, f) for d in (16, 40) for f in (1, 2)},
    "vgg8": partial(vgg, 1, 1, 1, 1, 1),
    "vgg11": partial(vgg, 1, 1, 2, 2, 2),
    "vgg13": partial(vgg, 2, 2, 2, 2, 2),
    "vgg16": partial(vgg, 2, 2, 3, 3, 3),
    "vgg19": partial(vgg, 2, 2, 4, 4, 4),
    "MobileNetV2": mobilenet_v2,
    "ShuffleV1": shufflenet_v1,
    "ShuffleV2": shufflenet_v2,
    "ResNet18": partial(_large, BasicBlock, depths=(2, 2, 2, 2)),
    "ResNet50": partial(_large, Bottleneck, depths=(3, 4, 6, 3)),
}
"""Name -> function that builds the network."""
