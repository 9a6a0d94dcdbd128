"""DeepLabV3 and PSPNet: sizes as published, wiring, initialisation, the backbone's weights, saving."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3_resnet50
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from hf_gdkd.errors import InputError
from hf_gdkd.models import (
    load_model,
    load_processor,
    load_segmentation_teacher,
    load_segmenter,
    loading,
    segment,
    segmentation_networks,
)
from hf_gdkd.models.segmentation_networks import NAMES
from hf_gdkd.models.segmentation_networks.modeling import PyramidPooling, SegmentationNetwork, SegmentationNetworkConfig

STREET = ["road", "car", "sky"]
DEEPLAB, PSPNET = "segmentation/deeplabv3_resnet18", "segmentation/pspnet_resnet18"


def network(name, labels=3, **options):
    torch.manual_seed(0)
    config = SegmentationNetworkConfig(architecture=name, num_labels=labels, **options)
    return SegmentationNetwork(config)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "name, millions", [("deeplabv3_resnet101", 61.1), ("deeplabv3_resnet18", 13.6), ("pspnet_resnet18", 12.9)]
)
def test_parameters_as_published(name, millions):
    """CIRKD's table 1, for 19 classes with the auxiliary head, on ResNets with a stem of three convolutions."""
    backbone = name.split("_")[1]
    with torch.device("meta"):
        deep = timm.create_model(backbone, stem_width=64, stem_type="deep")
        stem = parameters(deep) - parameters(timm.create_model(backbone))
        assert (parameters(network(name, 19)) + stem) / 1e6 == pytest.approx(millions, abs=0.05)


def test_deeplabv3_equals_torchvision():
    """With torchvision's weights; its head has no dropout, and its logits are enlarged."""
    ours = network("deeplabv3_resnet50").eval()
    theirs = deeplabv3_resnet50(weights_backbone=None, num_classes=3, aux_loss=True).eval()
    parts = [ours.backbone, ours.decode_head, ours.auxiliary_head]
    sources = [theirs.backbone, theirs.classifier, theirs.aux_classifier]
    values = ([tensor for part in each for tensor in part.state_dict().values()] for each in (parts, sources))
    pairs = zip(*values, strict=True)
    with torch.no_grad():
        for tensor, source in pairs:
            tensor.copy_(source)
        pixels = torch.randn(1, 3, 64, 96)
        logits, [(auxiliary, weight)] = segment(ours, pixels)
        expected = theirs(pixels)
    assert logits.shape == (1, 3, 8, 12) and weight == 0.4
    enlarged = [F.interpolate(each, (64, 96), mode="bilinear") for each in (logits, auxiliary)]
    torch.testing.assert_close(enlarged, [expected["out"], expected["aux"]], rtol=1e-4, atol=1e-5)


def test_pyramid_pooling_sees_the_map_in_cells():
    """Constant cells of a 6 x 6 grid: the mean over 1 x 1 is that of the map, that over 6 x 6 the map itself."""
    pooling = PyramidPooling(8).eval()
    x = torch.rand(1, 8, 6, 6)
    for scale in pooling.scales:
        nn.init.dirac_(scale[1][0].weight)
    out = pooling(x)
    assert out.shape == (1, 16, 6, 6)
    torch.testing.assert_close(out[:, :8], x)
    torch.testing.assert_close(
        out[:, 8:10], x[:, :2].mean((2, 3), keepdim=True).expand(1, 2, 6, 6), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(out[:, 14:], x[:, :2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_stride(stride):
    model = network("pspnet_resnet18", output_stride=stride, use_auxiliary_head=False).eval()
    with torch.no_grad():
        logits, auxiliary = segment(model, torch.randn(1, 3, 64, 128))
        hidden = model(torch.randn(1, 3, 64, 128), output_hidden_states=True).hidden_states
    assert logits.shape == (1, 3, 64 // stride, 128 // stride) and auxiliary == []
    assert [each.shape[1] for each in hidden] == [64, 128, 256, 512]


def test_loss_is_that_of_both_heads():
    model, labels = network("deeplabv3_resnet18").eval(), torch.randint(0, 3, (2, 32, 32))
    labels[0, :5] = 255
    pixels = torch.randn(2, 3, 32, 32)
    logits, [(auxiliary, _)] = segment(model, pixels)
    parts = [
        F.cross_entropy(F.interpolate(each, (32, 32), mode="bilinear"), labels, ignore_index=255)
        for each in (logits, auxiliary)
    ]
    torch.testing.assert_close(model(pixels, labels=labels).loss, parts[0] + 0.4 * parts[1])


def test_initialisation():
    model = network("deeplabv3_resnet18", 19)
    for name, weight in model.backbone.named_parameters():
        if weight.numel() > 4000:
            fan_out = weight.shape[0] * weight[0, 0].numel()
            assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
    bound = 1 / 128**0.5  # PyTorch's own
    assert 0.9 * bound < model.decode_head[-1].weight.abs().max() <= bound


# Names


def test_names():
    assert load_segmenter("Segmentation/DeepLabV3_ResNet18", label_names=STREET, init="random").config.num_labels == 3
    with pytest.raises(InputError, match=r"no segmentation network 'pspnet_resnet19': did you mean pspnet_resnet"):
        load_segmenter("segmentation/pspnet_resnet19", label_names=STREET)
    with pytest.raises(InputError, match="is no image classifier"):
        load_model(DEEPLAB, label_names=STREET)
    with pytest.raises(InputError, match="is no semantic segmentation model"):
        load_segmenter("cifar/resnet8", label_names=STREET)
    with pytest.raises(InputError, match=r"has no weights for its head: train it first \(--student segmentation/"):
        load_segmentation_teacher(DEEPLAB)
    with pytest.raises(InputError, match=r"timm/resnet18\.tv_in1k .*HF_HUB_OFFLINE"):
        load_segmenter(DEEPLAB, label_names=STREET)
    assert len(NAMES) == 8


def test_processor_leaves_the_size(tmp_path):
    """A colour becomes (colour / 255 - mean) / std of ImageNet."""
    load_processor(DEEPLAB).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    image = Image.fromarray(np.full((40, 60, 3), (255, 0, 128), np.uint8))
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(pixels[0, :, 5, 9], torch.tensor(expected))
    assert pixels.shape == (1, 3, 40, 60) and not processor.do_reduce_labels


# The backbone's weights, and saving


def test_the_backbone_starts_from_imagenet(tmp_path, monkeypatch, caplog):
    """The backbone is that of timm's repository; the heads are new."""
    torch.manual_seed(0)
    source = timm.create_model("resnet18")
    save_file(
        {name: tensor.contiguous() for name, tensor in source.state_dict().items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18"}))  # as timm's, without a model_type
    monkeypatch.setattr(segmentation_networks, "backbone_id", lambda name: str(tmp_path))
    with caplog.at_level(logging.WARNING):
        model = load_segmenter(PSPNET, label_names=STREET)
    assert "0 of 3 classes keep their pretrained weights, 3 are newly initialised" in caplog.text
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name
    assert model.decode_head[-1].weight.std() > 0.01 and model.config.id2label == dict(enumerate(STREET))
    assert model.dtype == torch.float32


def test_the_revision_is_that_of_the_backbone(monkeypatch, capsys):
    def resolve(name, revision):
        assert name == "timm/resnet18.tv_in1k"
        return SimpleNamespace(resolved="0" * 40)

    monkeypatch.setattr(loading, "resolve_revision", resolve)
    assert loading.pin_revision(PSPNET, None) == "0" * 40
    assert capsys.readouterr().out == f"{PSPNET} -> timm/resnet18.tv_in1k@{'0' * 40}\n"


@pytest.mark.parametrize("name", [DEEPLAB, PSPNET])
def test_saved_networks_load_with_the_auto_class(tmp_path, name):
    model = load_segmenter(name, label_names=STREET, init="random")
    pixels = torch.randn(2, 3, 32, 64)
    model.train()(pixels)  # running statistics of their own
    model.eval().save_pretrained(tmp_path)
    load_processor(name).save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert isinstance(again, SegmentationNetwork) and again.config.id2label == dict(enumerate(STREET))
    with torch.no_grad():
        torch.testing.assert_close(again(pixels).logits, model(pixels).logits)
    answer = pipeline("image-segmentation", str(tmp_path))(Image.effect_noise((50, 40), 90).convert("RGB"))
    assert {row["label"] for row in answer} <= set(STREET) and answer[0]["mask"].size == (50, 40)


def test_rows_of_matching_classes_are_kept(tmp_path, caplog):
    model = load_segmenter(DEEPLAB, label_names=STREET, init="random").eval()
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        other = load_segmenter(str(tmp_path), label_names=["sky", "tree", "road"]).eval()
    assert "2 of 3 classes keep their pretrained weights" in caplog.text
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        (old, [(old_auxiliary, _)]), (new, [(new_auxiliary, _)]) = segment(model, pixels), segment(other, pixels)
    torch.testing.assert_close(new[:, [0, 2]], old[:, [2, 0]])
    torch.testing.assert_close(new_auxiliary[:, [0, 2]], old_auxiliary[:, [2, 0]])
