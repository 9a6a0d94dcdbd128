"""The classifier head of a model: the names of its classes, and another number of them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import timm
import torch
from transformers import AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel, TimmWrapperConfig

from .class_matching import matching_rows

logger = logging.getLogger(__name__)


def class_names(model: PreTrainedModel) -> list[str]:
    """The names of a model's classes, in the order of its logits."""
    return [model.config.id2label[i] for i in range(model.config.num_labels)]


def with_labels(config: PreTrainedConfig, label_names: Sequence[str] | None) -> PreTrainedConfig:
    if label_names is not None:
        config.id2label = dict(enumerate(label_names))
        config.label2id = {label: i for i, label in enumerate(label_names)}
    return config


def build_model(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    model = AutoModelForImageClassification.from_config(
        config, trust_remote_code=trust_remote_code, dtype=torch.float32
    )
    if isinstance(config, TimmWrapperConfig):
        # The wrapper draws every weight anew with a standard deviation of 0.02: take timm's own initialisation.
        fresh = timm.create_model(config.architecture, num_classes=config.num_labels, **(config.model_args or {}))
        model.timm_model.load_state_dict(fresh.state_dict())
    return model


def fit_head(model: PreTrainedModel, label_names: list[str], trust_remote_code: bool) -> PreTrainedModel:
    """The model with one output a class: rows of its head that match by name are kept."""
    old_names = class_names(model)
    if old_names == label_names:
        return model
    config = with_labels(copy.deepcopy(model.config), label_names)
    fitted = build_model(config, trust_remote_code)
    # The head is what would change its shape with one class more.
    probe = build_model(with_labels(copy.deepcopy(config), [*label_names, "one more"]), trust_remote_code)
    kept, old, larger = matching_rows(old_names, label_names), model.state_dict(), probe.state_dict()
    for name, tensor in fitted.state_dict().items():
        if tensor.shape == larger[name].shape:
            tensor.copy_(old[name])
        else:
            tensor[list(kept)] = old[name][list(kept.values())]
    logger.warning(
        "student's head: %d of %d classes keep their pretrained weights, %d are newly initialised.",
        len(kept), len(label_names), len(label_names) - len(kept),
    )  # fmt: skip
    return fitted
