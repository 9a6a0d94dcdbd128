"""Small untrained classifiers and segmenters of digits, as folders."""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)

ROOT = Path(__file__).parents[2]


def save(folder, seed, names=tuple("0123456789")):
    """A small residual network that knows these classes and nothing else; returns its folder."""
    config = AutoConfig.from_pretrained(ROOT / "scripts/demo/cnn", num_labels=len(names))
    config.id2label = dict(enumerate(names))
    torch.manual_seed(seed)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    AutoImageProcessor.from_pretrained(ROOT / "scripts/demo/cnn").save_pretrained(folder)
    return str(folder)


def save_segmenter(folder, seed):
    """A small network for scenes of digits; returns its folder."""
    config = AutoConfig.from_pretrained(ROOT / "scripts/demo/scene-student", num_labels=11)
    config.id2label = dict(enumerate(["background", *"0123456789"]))
    torch.manual_seed(seed)
    AutoModelForSemanticSegmentation.from_config(config).save_pretrained(folder)
    AutoImageProcessor.from_pretrained(ROOT / "scripts/demo/scene-student").save_pretrained(folder)
    return str(folder)
