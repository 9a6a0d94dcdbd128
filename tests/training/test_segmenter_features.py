"""Where the feature hooks find the stages of segmenters, on images that are no square, and losses between pairs."""

import pytest
import torch
from transformers import (
    AutoModelForSemanticSegmentation,
    BeitConfig,
    MobileNetV2Config,
    Sapiens2Config,
    SegformerConfig,
    SwinConfig,
    UperNetConfig,
)

from hf_gdkd.losses import build_loss
from hf_gdkd.models import load_segmenter
from hf_gdkd.training.feature_distillation import FeatureDistillation
from hf_gdkd.training.feature_hooks import FeatureHooks
from hf_gdkd.training.teacher import Teacher

VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8}
NAMES = ["road", "car", "sky"]


def segformer(*widths):
    return SegformerConfig(
        hidden_sizes=widths, depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8, num_labels=3
    )


def upernet():
    swin = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 1, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3"],
    )  # fmt: skip
    return UperNetConfig(backbone_config=swin, hidden_size=8, use_auxiliary_head=False, num_labels=3)


# Configurations, and their stages with channels, height and width for an image of 64 x 128. The maps of 8 channels that
# are 8 high would pass for maps with channels last, were the image not known.
CONFIGS = {
    "segformer": (segformer(8, 8, 16, 16), {
        "segformer.stages.0": (8, 16, 32), "segformer.stages.1": (8, 8, 16), "segformer.stages.2": (16, 4, 8),
        "segformer.stages.3": (16, 2, 4),
    }),
    "upernet": (
        upernet(), {"backbone.swin.encoder.layers.0": (16, 8, 16), "backbone.swin.encoder.layers.2": (32, 4, 8)},
    ),
    "beit": (
        BeitConfig(**VIT, image_size=64, out_indices=[1, 2, 3, 4], auxiliary_channels=8, num_labels=3),
        {f"beit.layers.{i}": (16, 8, 16) for i in range(4)},
    ),
    "sapiens2": (  # eight registers stand before its tokens
        Sapiens2Config(
            **VIT, image_size=64, num_register_tokens=8, num_key_value_attention_heads=1, num_labels=3,
            head_config={"upsample_out_channels": [8], "conv_out_channels": [8]},
        ),
        {f"model.model.layer.{i}": (16, 8, 16) for i in range(4)},
    ),
    "mobilenet_v2": (
        MobileNetV2Config(depth_multiplier=0.35, output_stride=8, num_labels=3), {
            "mobilenet_v2.layer.1": (8, 16, 32), "mobilenet_v2.layer.5": (24, 8, 16),
            "mobilenet_v2.layer.12": (56, 8, 16), "mobilenet_v2.layer.15": (112, 8, 16),
        },
    ),
}  # fmt: skip


def collected(model, pixels):
    hooks = FeatureHooks(model.eval(), lambda: model(pixels))
    with torch.no_grad(), hooks.collecting():
        model(pixels)
    return dict(zip(hooks.layers, (tuple(stage.shape[1:]) for stage in hooks.take().stages), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_stages_are_those_of_the_backbone(name):
    config, stages = CONFIGS[name]
    assert collected(AutoModelForSemanticSegmentation.from_config(config), torch.randn(2, 3, 64, 128)) == stages


@pytest.mark.parametrize("head", ["deeplabv3", "pspnet"])
def test_dilated_stages_are_found_though_their_resolution_is_one(head):
    model = load_segmenter(f"segmentation/{head}_resnet18", label_names=NAMES, init="random")
    assert collected(model, torch.randn(2, 3, 64, 96)) == {
        "backbone.layer1": (64, 16, 24), "backbone.layer2": (128, 8, 12), "backbone.layer3": (256, 8, 12),
        "backbone.layer4": (512, 8, 12),
    }  # fmt: skip


def test_sides_that_are_no_multiple_of_the_patches():
    """61 x 100 pixels are 16 x 25 patches of 4, then halves of that, rounded up."""
    model = AutoModelForSemanticSegmentation.from_config(segformer(8, 8, 16, 16))
    shapes = list(collected(model, torch.randn(2, 3, 61, 100)).values())
    assert shapes == [(8, 16, 25), (8, 8, 13), (16, 4, 7), (16, 2, 4)]


@pytest.mark.parametrize("loss", ["fitnet", "at"])
@pytest.mark.parametrize("pair", ["segformer", "deeplabv3"])
def test_losses_between_pairs(pair, loss):
    """The hint's loss reaches the student's backbone alone."""
    torch.manual_seed(0)
    if pair == "segformer":
        student, teacher = (
            AutoModelForSemanticSegmentation.from_config(segformer(*widths))
            for widths in [(8, 8, 16, 16), (8, 16, 24, 32)]
        )
    else:
        student, teacher = (
            load_segmenter(f"segmentation/{name}_resnet18", label_names=NAMES, init="random")
            for name in ("pspnet", "deeplabv3")
        )
    batch = {"pixel_values": torch.randn(2, 3, 32, 64)}
    teacher = Teacher(teacher)
    distillation = FeatureDistillation(build_loss(loss), student, teacher, batch)
    with distillation.collecting():
        logits = student(**batch).logits
        with torch.no_grad():
            target = teacher.model(**batch).logits
    value = distillation.parts(logits, target)[loss].sum()
    value.backward()
    assert value > 0 and value.isfinite()
    first = next(student.parameters())
    assert first.grad.abs().sum() > 0 and all(p.grad is None for p in student.decode_head.parameters())
