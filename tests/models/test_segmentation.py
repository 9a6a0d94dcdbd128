"""Semantic segmentation models by name, offline: heads, classes, encoders without a decoder, auxiliary logits."""

import importlib.util
import json
import logging
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForSemanticSegmentation,
    BeitConfig,
    MobileViTConfig,
    MobileViTForImageClassification,
    ResNetConfig,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from hf_gdkd.errors import InputError
from hf_gdkd.models import load_processor, load_segmentation_teacher, load_segmenter, segment

STREET = ["road", "car", "sky"]
TINY = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
ENCODER = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4, "intermediate_size": 16}


def segformer(names=STREET):
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return SegformerConfig(**TINY, decoder_hidden_size=8, **labels)


def logits_of(model, pixels):
    with torch.no_grad():
        return model.eval()(pixels).logits


@pytest.fixture
def folder(tmp_path):
    """A SegFormer of three classes whose running statistics are not those of a new one."""
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(segformer())
    model.train()(torch.randn(2, 3, 32, 32))
    model.save_pretrained(tmp_path / "segformer")
    return str(tmp_path / "segformer")


def test_a_saved_model_keeps_everything(folder):
    saved = AutoModelForSemanticSegmentation.from_pretrained(folder)
    for model in (
        load_segmenter(folder),
        load_segmentation_teacher(folder),
        load_segmenter(folder, label_names=STREET),
    ):
        torch.testing.assert_close(model.state_dict(), saved.state_dict(), rtol=0, atol=0)
        assert model.config.id2label == dict(enumerate(STREET)) and model.dtype == torch.float32


def test_rows_of_matching_classes_are_kept(folder, tmp_path, caplog):
    names = ["sky", "tree", "road", "person"]
    pixels = torch.randn(1, 3, 32, 48)
    with caplog.at_level(logging.WARNING):
        model = load_segmenter(folder, label_names=names)
    assert "2 of 4 classes keep their pretrained weights, 2 are newly initialised" in caplog.text
    old, new = logits_of(load_segmenter(folder), pixels), logits_of(model, pixels)
    assert new.shape == (1, 4, 8, 12)
    torch.testing.assert_close(new[:, [0, 2]], old[:, [2, 0]])
    assert model.config.label2id == {name: i for i, name in enumerate(names)}
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits_of(load_segmentation_teacher(str(tmp_path / "saved")), pixels), new)


def test_an_encoder_is_a_student_and_no_teacher(tmp_path, caplog):
    """nvidia/mit-b0 is the encoder of SegFormer, saved with a head for the classes of ImageNet."""
    torch.manual_seed(0)
    config = segformer(["tench", "goldfish"])
    encoder = SegformerForImageClassification(config)
    encoder.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = load_segmenter(str(tmp_path), label_names=STREET)
    assert "0 of 3 classes keep their pretrained weights" in caplog.text
    torch.testing.assert_close(model.segformer.state_dict(), encoder.segformer.state_dict(), rtol=0, atol=0)
    weight = model.decode_head.classifier.weight
    assert weight.shape == (3, 8, 1, 1) and weight.std() > 0
    with pytest.raises(InputError, match=r"has no weights for decode_head.*a trained segmentation head\.$"):
        load_segmentation_teacher(str(tmp_path))


def test_the_whole_decoder_may_be_new(tmp_path):
    """MobileViT's has layers that stand beside the classifier, not above it."""
    sizes = {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8] * 6 + [32], "num_attention_heads": 2}
    encoder = MobileViTForImageClassification(MobileViTConfig(**sizes, aspp_out_channels=8, num_labels=2))
    encoder.save_pretrained(tmp_path)
    model = load_segmenter(str(tmp_path), label_names=STREET)
    assert model.config.num_labels == 3 and any("aspp" in name for name in model.state_dict())


def test_an_encoder_of_which_parts_are_missing_is_refused(folder):
    model = SegformerForSemanticSegmentation.from_pretrained(folder)
    state = {
        k: v for k, v in model.state_dict().items() if "segformer.stages.1" not in k and "encoder.block.1" not in k
    }
    assert len(state) < len(model.state_dict())
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(InputError, match=r"lacks .* of the model's .* tensors, such as segformer"):
        load_segmenter(folder, label_names=["a", "b"])


def test_random_needs_only_a_config(tmp_path):
    segformer().save_pretrained(tmp_path)
    a, b = (load_segmenter(str(tmp_path), label_names=["x", "y"], init="random") for _ in range(2))
    assert a.config.num_labels == 2 and not torch.equal(
        a.decode_head.classifier.weight, b.decode_head.classifier.weight
    )


@pytest.mark.parametrize("load", [load_segmenter, load_segmentation_teacher])
def test_another_kind_of_model_is_refused(tmp_path, load):
    ViTForImageClassification(ViTConfig(**ENCODER, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is no semantic segmentation model: transformers has none of the type 'vit'"):
        load(str(tmp_path))


def test_auxiliary_logits_are_those_of_the_models_own_loss():
    """The model's loss is that of its logits, and 0.3 times that of its auxiliary ones, at the labels' resolution."""
    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    upernet = UperNetConfig(
        backbone_config=backbone, hidden_size=8, auxiliary_channels=8, auxiliary_in_channels=16, num_labels=3,
        auxiliary_loss_weight=0.3,
    )  # fmt: skip
    beit = BeitConfig(
        **ENCODER, image_size=32, patch_size=8, out_indices=[1, 2, 3, 4], num_labels=3, auxiliary_loss_weight=0.3,
        auxiliary_channels=8, pool_scales=[1, 2], use_mask_token=False,
    )  # fmt: skip
    pixels, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    labels[0, :4] = 255
    for config in (upernet, beit):
        model = AutoModelForSemanticSegmentation.from_config(config).eval()
        logits, [(auxiliary, weight)] = segment(model, pixels)
        assert weight == 0.3 and auxiliary.shape[:2] == (2, 3)
        parts = [
            F.cross_entropy(F.interpolate(each, (32, 32), mode="bilinear"), labels, ignore_index=255)
            for each in (logits, auxiliary)
        ]
        torch.testing.assert_close(model(pixels, labels=labels).loss, parts[0] + 0.3 * parts[1])
        auxiliary.sum().backward()  # it is in the graph
        assert not model.auxiliary_head._forward_hooks


def test_a_model_without_auxiliary_head_has_none(folder):
    logits, auxiliary = segment(load_segmenter(folder), torch.randn(1, 3, 32, 32))
    assert logits.shape == (1, 3, 8, 8) and auxiliary == []


@pytest.mark.parametrize("reduce", [True, False])
def test_the_old_name_of_reduced_labels_counts(folder, reduce, tmp_path):
    """nvidia/segformer-b0-finetuned-ade-512-512 says `reduce_labels`, which transformers 5 does not heed."""
    old = {"image_processor_type": "SegformerImageProcessor", "reduce_labels": reduce, "size": 512}
    Path(folder, "preprocessor_config.json").write_text(json.dumps(old))
    processor = load_processor(folder)
    assert processor.do_reduce_labels is reduce
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["do_reduce_labels"] is reduce and "reduce_labels" not in saved


# -- every type --------------------------------------------------------------------------------------------

SPEC = importlib.util.spec_from_file_location("segmentation_sweep", Path(__file__).parent / "segmentation_sweep.py")
sweep = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sweep)


def test_every_segmenter_of_transformers_is_swept():
    assert set(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES) == {name.split("/")[0] for name in sweep.TRANSFORMERS}


@pytest.mark.slow
@pytest.mark.parametrize("name", sweep.TRANSFORMERS)
def test_models(name):
    sweep.check(name)
