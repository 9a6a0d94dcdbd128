"""Small untrained classifiers of digits, as folders."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

ROOT = Path(__file__).parents[2]


def save(folder, seed, names=tuple("0123456789")):
    """A small residual network that knows these classes and nothing else; returns its folder."""
    config = AutoConfig.from_pretrained(ROOT / "scripts/demo/cnn", num_labels=len(names))
    config.id2label = dict(enumerate(names))
    torch.manual_seed(seed)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    AutoImageProcessor.from_pretrained(ROOT / "scripts/demo/cnn").save_pretrained(folder)
    return str(folder)
