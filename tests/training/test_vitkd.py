"""Training with ViTKD: it finds the first blocks and the final norm, learns beside the student, and resumes exactly."""

from __future__ import annotations

import pytest
import timm
import torch
from tiny_training import StopAt, rows
from transformers import ViTConfig, ViTForImageClassification

from hf_gdkd import GDKDConfig, GDKDTrainer
from hf_gdkd.training.feature_hooks import FeatureHooks


def vit(width=8, depth=3, seed=0):
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=2, intermediate_size=16, image_size=8,
        patch_size=2, num_labels=5,
    )  # fmt: skip
    return ViTForImageClassification(config)


def distil(folder, *, resume=None, callbacks=None, **options):
    g = torch.Generator().manual_seed(5)
    data = [{"pixel_values": torch.randn(3, 8, 8, generator=g), "labels": i % 5} for i in range(20)]
    args = GDKDConfig(
        output_dir=str(folder), loss="vitkd", per_device_train_batch_size=8, learning_rate=5e-3, logging_steps=1,
        report_to="none", disable_tqdm=True, use_cpu=True, lr_scheduler_type="constant", **options,
    )  # fmt: skip
    trainer = GDKDTrainer(vit(), vit(12, 4, seed=1), args, train_dataset=data, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_both_parts_fall_and_a_resumed_run_is_the_same(tmp_path):
    options = {"ce_weight": 0.0, "alpha": 1.0, "beta": 1.0, "num_train_epochs": 8}
    straight = distil(tmp_path / "a", save_strategy="no", **options)
    log = rows(straight)
    for part, fallen in (("mimic", 0.6), ("generate", 0.97)):
        assert sum(row[part] for row in log[-3:]) < fallen * sum(row[part] for row in log[:3])
    distil(tmp_path / "b", callbacks=[StopAt(4)], **options)
    resumed = distil(tmp_path / "b", resume=str(tmp_path / "b/checkpoint-4"), **options)
    assert rows(resumed) == log
    learned = resumed.projections.state_dict()
    assert learned and all(torch.equal(x, learned[name]) for name, x in straight.projections.state_dict().items())
    assert resumed.model.state_dict().keys() == vit().state_dict().keys()


@pytest.mark.parametrize("model, places", [
    (vit(depth=4), ["vit.layers.0", "vit.layers.1", "vit.layernorm"]),
    (timm.create_model("vit_tiny_patch16_224", img_size=32, depth=4, embed_dim=12, num_heads=2, num_classes=5),
     ["blocks.0", "blocks.1", "norm"]),
], ids=["transformers", "timm"])  # fmt: skip
def test_the_published_places_are_found(model, places):
    size = 8 if places[0].startswith("vit") else 32
    hooks = FeatureHooks(model, lambda: model(torch.randn(2, 3, size, size)), taps="blocks")
    assert hooks.layers == places
    with hooks.collecting():
        model(torch.randn(2, 3, size, size))
    assert len({x.shape for x in hooks.take().stages}) == 1
