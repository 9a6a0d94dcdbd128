"""The kinds of models that are distilled: image classifiers and semantic segmenters."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation


class Kind(NamedTuple):
    """What loading a model must know of its kind."""

    auto: type
    """The Auto class of transformers that builds and loads one."""
    name: str
    """What messages call one."""
    head: str
    """What messages call the part that a checkpoint of another kind lacks."""


CLASSIFIER = Kind(AutoModelForImageClassification, "image classifier", "classification head")
SEGMENTER = Kind(AutoModelForSemanticSegmentation, "semantic segmentation model", "segmentation head")


def kind_of(model: nn.Module) -> Kind:
    """The kind of a model: a segmenter if AutoModelForSemanticSegmentation makes models of its class."""
    makes, config = AutoModelForSemanticSegmentation._model_mapping, type(getattr(model, "config", None))
    return SEGMENTER if config in makes and isinstance(model, makes[config]) else CLASSIFIER
