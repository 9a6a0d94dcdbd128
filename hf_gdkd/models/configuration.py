"""config.json of a model: read from a folder, the Hub or the installed timm, checked, and given the class names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import timm
from transformers import AutoConfig, PreTrainedConfig, TimmWrapperConfig

from ..errors import InputError
from .cifar.modeling import CifarConfig
from .kinds import CLASSIFIER, Kind
from .load_errors import explained
from .names import CIFAR, SEGMENTATION, is_cifar_network, is_segmentation_network
from .segmentation_networks.modeling import SegmentationNetworkConfig

OWN_MODULES = {config.model_type: config.__module__ for config in (CifarConfig, SegmentationNetworkConfig)}
"""Type of a model of the paper -> the module that has to be imported before transformers knows it."""

# What timm does with these would not be this model's architecture: other weights, other files.
_TIMM_OWN = {"features_only", "num_classes", *signature(timm.create_model).parameters} | set(
    signature(timm.models.build_model_with_cfg).parameters
)


def read_config(
    path: str,
    kind: Kind = CLASSIFIER,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    installed: bool = False,
) -> PreTrainedConfig:
    """The configuration of a model, by its resolved name.

    Args:
        path: what `resolve_name` returns.
        kind: what the model must be.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code from the repository.
        installed: take a timm architecture's configuration from the installed timm, which needs no download.

    Raises:
        InputError: it cannot be read, belongs to no model of this kind, or the model does not take RGB images.
    """
    if is_cifar_network(path):
        config = CifarConfig(architecture=path.removeprefix(CIFAR), num_labels=100)
    elif is_segmentation_network(path):
        config = SegmentationNetworkConfig(architecture=path.removeprefix(SEGMENTATION), num_labels=0)
    elif not installed or (config := timm_config(path)) is None:
        with explained(f"model {path} cannot be loaded", path, revision):
            config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    has_code = kind.auto.__name__ in (getattr(config, "auto_map", None) or {})
    if type(config) not in kind.auto._model_mapping and not has_code:
        raise InputError(
            f"model {path} is no {kind.name}: transformers has none of the type {config.model_type!r}; choose "
            "another model."
        )
    if isinstance(config, TimmWrapperConfig):
        _complete_timm(config)
    if (channels := _channels(config)) != 3:
        raise InputError(
            f"model {path} takes images of {channels} channel{'s' if channels != 1 else ''}, and images are read as "
            "RGB (3 channels): choose a model for RGB images."
        )
    return config


def timm_config(path: str) -> TimmWrapperConfig | None:
    """The configuration of a timm architecture, from the installed timm; None for any other model."""
    architecture = path.removeprefix("timm/")
    if os.path.isdir(path) or not path.startswith("timm/") or not timm.is_model(architecture):
        return None
    pretrained = timm.get_pretrained_cfg(architecture).to_dict()
    config = {"architecture": architecture.split(".")[0], "num_classes": pretrained["num_classes"]}
    return TimmWrapperConfig.from_dict(config | {"pretrained_cfg": pretrained})


def names_of(config: PreTrainedConfig) -> list[str]:
    """The names of a model's classes, in the order of its logits, from `id2label`; numbers become text.

    Raises:
        InputError: `id2label` does not name the classes 0 to `num_labels` - 1, each by a text or a number.
    """
    count = config.num_labels or 0
    names = {i: f"LABEL_{i}" for i in range(count)} if config.id2label is None else config.id2label
    if sorted(names) != list(range(count)):
        keys = f"the keys {', '.join(map(str, sorted(names)[:3]))}, ..." if names else "no keys"
        raise InputError(
            f"id2label in the config.json of {config.name_or_path or 'the model'} has {keys}, expected the "
            f"{count} class indices from 0 to {count - 1}: correct that file."
        )
    for i, name in names.items():
        if not isinstance(name, str | int) or name == "":
            raise InputError(
                f"id2label in the config.json of {config.name_or_path or 'the model'} has {name!r} as the name of "
                f"class {i}, expected a text: correct that file."
            )
    return [str(names[i]) for i in range(count)]


def with_labels(config: PreTrainedConfig, names: Sequence[str] | None) -> PreTrainedConfig:
    """`config`, changed to a single-label classifier of these classes; unchanged where `names` is None."""
    if names is not None:
        config.num_labels = len(names)  # some configurations (PVT) keep this number beside the names
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
        if config.problem_type is not None:  # a pipeline would answer a multi-label problem with sigmoids
            config.problem_type = "single_label_classification" if len(names) > 1 else None
        for key in ("label_names", "label_descriptions"):  # timm's; they would be saved in place of id2label
            config.__dict__.pop(key, None)
    return config


def with_options(config: PreTrainedConfig, options: Mapping[str, Any], path: str) -> PreTrainedConfig:
    """`config` with some values changed; of a timm model, with arguments for its constructor.

    Nothing that says which classes there are, what code runs or what is downloaded can be changed.

    Raises:
        InputError: a name that the configuration does not have, or a value that it does not accept.
    """
    timm_model, general = isinstance(config, TimmWrapperConfig), PreTrainedConfig()
    for name, value in options.items():
        if timm_model:
            known = name.isidentifier() and name not in _TIMM_OWN
        else:
            known = hasattr(config, name) and not hasattr(general, name) and not callable(getattr(config, name))
        if not known or name.startswith("_") or "pretrained" in name or "backbone" in name or name == "auto_map":
            raise InputError(
                f"model {path} has no {name} to change in its configuration: use names of its config.json."
            )
        if isinstance(value, dict):
            raise InputError(f"{name} is a mapping: use a number, a word, true, false, or a list of them.")
        if timm_model:
            config.model_args = (config.model_args or {}) | {name: value}
        else:
            with explained(f"{name} cannot be {value!r} in the configuration of {path}", path):
                setattr(config, name, value)
    return config


def check_architectures(config: PreTrainedConfig, path: str, kind: Kind, *, weights: bool) -> None:
    """Let transformers choose the class of the model where config.json names none.

    Raises:
        InputError: there are `weights`, and the model type has several classes that they could belong to.
    """
    if config.architectures is None:
        config.architectures = []  # transformers iterates over it
    classes = kind.auto._model_mapping.get(type(config), ())
    if weights and isinstance(classes, tuple) and not {c.__name__ for c in classes} & set(config.architectures):
        raise InputError(
            f"model {path}: its config.json has no `architectures`, and its weights may belong to any of "
            f"{', '.join(c.__name__ for c in classes)}: add the one that was saved."
        )


def _complete_timm(config: TimmWrapperConfig) -> None:
    """Let the wrapper build what `timm.models.save_for_hf` wrote: it passes the number of classes itself."""
    config.model_args = {k: v for k, v in (config.model_args or {}).items() if k != "num_classes"} or None
    names: Any = getattr(config, "label_names", None)
    if isinstance(names, dict):  # {index: name}, of which the wrapper takes the indices
        config.id2label = {int(i): name for i, name in names.items()}


def _channels(config: PreTrainedConfig) -> int:
    if isinstance(config, TimmWrapperConfig):
        size = (getattr(config, "pretrained_cfg", None) or {}).get("input_size") or [3]
        return (config.model_args or {}).get("in_chans", size[0])
    vision = getattr(config, "vision_config", None) or config
    return getattr(vision, "num_channels", None) or 3
