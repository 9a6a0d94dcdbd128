"""Where the collector finds the stages of a model, and that it reads them from the model's own forward pass."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_gdkd.errors import InputError
from hf_gdkd.models.loading import load_model
from hf_gdkd.training.feature_hooks import FeatureHooks


class Block(nn.Module):
    """A residual block that shrinks in its second convolution."""

    def __init__(self, inside, out, stride):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(inside, out, 3, padding=1), nn.Conv2d(out, out, 3, stride, padding=1)
        self.act, self.short = nn.ReLU(), nn.Conv2d(inside, out, 1, stride)

    def forward(self, x):
        return self.act(self.conv2(self.act(self.conv1(x))) + self.short(x))


class Plain(nn.Module):
    """A CNN of no library, with a shared activation and a stem."""

    def __init__(self, widths=(4, 6, 8), classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.stage1 = Block(widths[0], widths[0], 1)
        self.stage2 = Block(widths[0], widths[1], 2)
        self.stage3 = Block(widths[1], widths[2], 2)
        self.act, self.pool, self.head = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Linear(widths[2], classes)

    def forward(self, x):
        x = self.stage3(self.stage2(self.stage1(self.act(self.stem(self.act(x))))))
        return self.head(self.pool(x).flatten(1))


def vit(depth=6, size=16):
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=8, num_hidden_layers=depth, num_attention_heads=2, intermediate_size=16, image_size=size,
            patch_size=4, num_labels=5,
        )
    )  # fmt: skip


def resnet():
    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6, 8, 10], depths=[1, 2, 1, 1], layer_type="basic", num_labels=5
    )
    return ResNetForImageClassification(config)


def swin():
    """Its pooling takes 64 channels for tokens, of an 8 x 8 grid."""
    return SwinForImageClassification(
        SwinConfig(
            image_size=32, patch_size=2, embed_dim=16, depths=[1, 1, 2], num_heads=[1, 2, 2], window_size=2,
            num_labels=5,
        )
    )  # fmt: skip


def convnext():
    config = ConvNextConfig(num_stages=3, hidden_sizes=[4, 6, 8], depths=[1, 1, 1], patch_size=2, num_labels=5)
    return ConvNextForImageClassification(config)


def collector(model, size, **options):
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size)
    return FeatureHooks(model.eval(), lambda: model(x), **options), x


# name: model, size of images, stages with their channels and sizes, size of the pooled features
MODELS = {
    "plain": (Plain, 16, {"stage1": (4, 16), "stage2": (6, 8), "stage3": (8, 4)}, 8),
    "vit": (lambda: vit(12), 16, {f"vit.layers.{i}": (8, 4) for i in (2, 5, 8, 11)}, 8),
    "vit of 6": (vit, 16, {f"vit.layers.{i}": (8, 4) for i in (1, 2, 4, 5)}, 8),
    "vit of 1": (lambda: vit(1), 16, {"vit.layers.0": (8, 4)}, 8),
    "resnet": (
        resnet, 64, {f"resnet.encoder.stages.{i}": (4 + 2 * i, 16 // 2**i) for i in range(4)}, 10,
    ),
    "convnext": (convnext, 16, {f"convnext.encoder.stages.{i}": (4 + 2 * i, 8 // 2**i) for i in range(3)}, 8),
    "swin": (swin, 32, {"swin.encoder.layers.0": (32, 8), "swin.encoder.layers.2": (64, 4)}, 64),
    "timm vit": (lambda: timm.create_model("test_vit"), 160, {f"blocks.{i}": (64, 10) for i in (1, 2, 4, 5)}, 64),
    "timm resnet": (
        lambda: timm.create_model("test_resnet"), 160,
        {"layer1": (32, 40), "layer2": (48, 20), "layer3": (192, 10), "layer4": (96, 5)}, 96,
    ),
    "timm swin": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), img_size=64,
            window_size=2,
        ), 64, {f"layers.{i}": (8 * 2**i, 16 // 2**i) for i in range(4)}, 64,
    ),
    "timm vgg": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 5),
        ), 16, {"1": (4, 16), "4": (6, 8), "7": (8, 4)}, 8,
    ),
    "convolution as head": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 6, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 5, 1),
                              nn.Flatten()), 16, {"0": (4, 7), "1": (6, 3)}, 6,
    ),
    "of the paper": (
        lambda: load_model("cifar/resnet8x4", init="random", num_labels=5), 32,
        {"stages.1": (64, 32), "stages.2": (128, 16), "stages.3": (256, 8)}, 256,
    ),
    "long stem": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 6, 2, 2), nn.Conv2d(6, 8, 2, 2)),
            nn.Sequential(*(Block(8, 8, 1) for _ in range(4))), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        ), 32, {f"1.{i}": (8, 4) for i in range(4)}, 8,
    ),
    "no maps": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.ReLU(), nn.Linear(7, 5)), 8, {}, 7),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_stages_and_pooled_features(name):
    build, size, stages, pooled = MODELS[name]
    model = build()
    found, x = collector(model, size)
    assert found.layers == list(stages)
    with torch.no_grad(), found.collecting():
        output = model(x)
    features = found.take()
    assert [(s.shape[0], *s.shape[1:]) for s in features.stages] == [(2, c, s, s) for c, s in stages.values()]
    assert features.pooled.shape == (2, pooled)
    logits = getattr(output, "logits", output)
    head = next(m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear | nn.Conv2d))
    with torch.no_grad():
        again = head(features.pooled if isinstance(head, nn.Linear) else features.pooled[:, :, None, None]).flatten(1)
    torch.testing.assert_close(again, logits)


def test_tokens_become_a_map_without_the_class_token():
    model = vit(2)
    found, x = collector(model, 16)
    kept = []
    handle = model.vit.layers[1].register_forward_hook(lambda m, a, output: kept.append(output))
    with found.collecting():
        model(x)
    handle.remove()
    stage = found.take().stages[1]
    for row in range(4):
        for column in range(4):
            assert torch.equal(stage[:, :, row, column], kept[0][:, 1 + 4 * row + column])


def test_the_features_are_those_of_the_pass_with_its_gradient_and_are_let_go():
    model = Plain()
    found, x = collector(model, 16)
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    with found.collecting():
        logits = model(x)
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    features = found.take()
    (gradient,) = torch.autograd.grad(logits.sum(), features.stages[2], retain_graph=True)
    assert gradient.abs().max() > 0
    features.stages[0].sum().backward()
    assert model.stem.weight.grad is not None and model.stage2.conv1.weight.grad is None
    assert not found._seen


def test_named_layers():
    model = Plain()
    found, x = collector(model, 16, layers=["stage2.conv1", "stage3"])
    with found.collecting():
        model(x)
    assert [tuple(s.shape) for s in found.take().stages] == [(2, 6, 16, 16), (2, 8, 4, 4)]


@pytest.mark.parametrize("layer, said", [
    ("stage4", "the student has no module 'stage4': choose one such as stage"),
    ("head", "module 'head' of the student does not return one map"),
    ("act", "module 'act' of the student does not return one map"),  # it runs twice
])  # fmt: skip
def test_layers_that_are_none(layer, said):
    with pytest.raises(InputError) as caught:
        collector(Plain(), 16, layers=["stage1", layer], name="student")
    assert said in str(caught.value) and "\n" not in str(caught.value)
