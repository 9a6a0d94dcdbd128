"""The head of a model: its parameters, the names of its classes, and another set of classes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, TimmWrapperConfig

from .class_matching import matching_rows
from .configuration import names_of, with_labels
from .kinds import Kind


def class_names(model: PreTrainedModel) -> list[str]:
    """The names of a model's classes, in the order of its logits.

    Raises:
        InputError: its configuration does not name every class.

    Examples:
        >>> from hf_gdkd.models import class_names, load_model
        >>> class_names(load_model("cifar/resnet8", label_names=["cat", "dog"], init="random"))
        ['cat', 'dog']
    """
    return names_of(model.config)


def backbone_name(model: nn.Module) -> str | None:
    """The name of the module that holds a model's backbone, without its head or decoder; None where it has none."""
    names = {getattr(model, "base_model_prefix", ""), "backbone"}
    return next((name for name, _ in model.named_children() if name in names), None)


def build_model(config: PreTrainedConfig, kind: Kind, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model with random weights in float32; a timm architecture has timm's own initialisation."""
    options = {"trust_remote_code": trust_remote_code, "dtype": torch.float32}
    if not isinstance(config, TimmWrapperConfig):
        return kind.auto.from_config(config, **options)
    with torch.device("meta"):  # the wrapper would draw every weight with a standard deviation of 0.02
        model = kind.auto.from_config(config, **options)
    arguments = config.model_args or {}
    model.timm_model = timm.create_model(config.architecture, num_classes=config.num_labels, **arguments)
    return model


def head_parameters(config: PreTrainedConfig, build: Callable[[PreTrainedConfig], nn.Module]) -> set[str]:
    """The names of the tensors whose shape depends on the number of classes, from two models without memory."""
    shapes = []
    for count in (3, 4):
        changed = with_labels(copy.deepcopy(config), [str(i) for i in range(count)])
        with torch.device("meta"):
            model = build(changed)
        shapes.append({name: tensor.shape for name, tensor in model.state_dict().items()})
    return {name for name, shape in shapes[0].items() if shape != shapes[1][name]}


def renew_head(model: PreTrainedModel, head: set[str], old: dict[str, Tensor], old_names: list[str]) -> int:
    """Initialise the head anew, but for the rows of classes that match by name; returns the number of these rows.

    Args:
        model: it has its new classes already.
        head: names of the head's tensors.
        old: these tensors for the old classes; empty when there are none to keep.
        old_names: names of the old classes, in the order of the rows.
    """
    for module in {model.get_submodule(name.rpartition(".")[0]) for name in head}:
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False  # else transformers leaves what it has loaded as it is
        model._init_weights(module)
    kept = matching_rows(old_names, class_names(model)) if old else {}
    state = model.state_dict()
    with torch.no_grad():
        for name in head & old.keys():
            state[name][list(kept)] = old[name][list(kept.values())]
    return len(kept)
