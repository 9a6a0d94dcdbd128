"""Name -> model and image processor: Hub ids, short names, timm ids, local folders, the paper's CIFAR networks."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import timm
import torch
from accelerate import PartialState
from huggingface_hub import constants, file_exists, resolve_revision
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    ViTImageProcessor,
)
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from ..errors import InputError, first_sentence
from ..hub_client import HUB_ERRORS, hub_reason
from .cifar.configuration import CifarConfig
from .heads import build_model, fit_head, with_labels
from .names import CIFAR, is_cifar_network, resolve_name

logger = logging.getLogger(__name__)


def load_model(
    name: str,
    *,
    num_labels: int | None = None,
    label_names: Sequence[str] | None = None,
    init: str = "pretrained",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """An image classifier in float32, by name.

    Args:
        name: Hub id, short name, timm id, local folder, or CIFAR network (without names or number: 100 classes).
        num_labels: number of classes, when their names are not known; a pretrained head of that size is kept.
        label_names: names of the classes, which become id2label and label2id. A pretrained head keeps the rows of
            the classes that match by name; the other rows are newly initialised, which is said.
        init: "pretrained" loads the weights, "random" takes the architecture only, as always for a CIFAR network.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code from the repository. Off: a repository that needs it is refused.

    Raises:
        InputError: no such model, no safetensors weights, or remote code without `trust_remote_code`.

    Example:
        >>> from hf_gdkd.models import load_model
        >>> model = load_model("cifar/resnet8", label_names=["cat", "dog"], init="random")
        >>> model.config.id2label
        {0: 'cat', 1: 'dog'}
    """
    path = resolve_name(name)
    if possible_init(name, init) == "random":
        config = _architecture(path, revision, trust_remote_code)
        config = with_labels(config, _names(config, num_labels, label_names))
        try:
            return build_model(config, trust_remote_code)
        except (ValueError, RuntimeError, ImportError) as error:
            raise InputError(f"model {path} cannot be built: {_reason(error, path)}") from error
    model, missing = _load_weights(path, revision, trust_remote_code)
    if missing:
        logger.warning("%s: newly initialised: %s.", path, ", ".join(sorted(missing)))
    names = _names(model.config, num_labels, label_names)
    return model if names is None else fit_head(model, names, trust_remote_code)


def possible_init(name: str, init: str) -> str:
    """`init` of `load_model`; "random", which is said, where it is "pretrained" and there are no weights."""
    path = resolve_name(name)
    if init == "pretrained" and is_cifar_network(path):
        logger.warning("%s has no pretrained weights: it starts from random ones.", path)
        return "random"
    return init


def load_teacher(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """An image classifier with all its weights, by name.

    Raises:
        InputError: as `load_model`, and a checkpoint that lacks a part of the model, such as the head.
    """
    path = resolve_name(name)
    if is_cifar_network(path):
        raise InputError(
            f"teacher {path} has no weights: train it first (--student {path} --loss ce), then give its folder."
        )
    model, missing = _load_weights(path, revision, trust_remote_code)
    if missing:
        raise InputError(
            f"teacher {path} has no weights for {', '.join(sorted(missing)[:4])}, which would be random: "
            "choose a checkpoint with a trained classification head."
        )
    return model


def load_processor(
    name: str, *, init: str = "pretrained", revision: str | None = None, trust_remote_code: bool = False
) -> BaseImageProcessor:
    """The image processor that belongs to a model, by the arguments of `load_model`.

    That of a timm model is its repository's; with `init` "random", which downloads nothing, the installed timm's.

    Raises:
        InputError: there is none.
    """
    path = resolve_name(name)
    if is_cifar_network(path):  # the size, mean and standard deviation of the paper's CIFAR-100 experiments
        mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
        return ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=mean, image_std=std)
    if init == "random" and (config := _timm_config(path)) is not None:
        return TimmWrapperImageProcessor(config.pretrained_cfg, config.architecture)
    try:
        return AutoImageProcessor.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except HUB_ERRORS as error:
        reason = _reason(error, path, revision)
        raise InputError(f"the image processor of {path} cannot be loaded: {reason}") from error


def pin_revision(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a model on the Hub stands for now, printed with the full id; else as given.

    Without a network it is the commit in the cache.

    Raises:
        InputError: no such model or revision, or one that the Hub does not show with this token; no network, and
            nothing in the cache.
    """
    path = resolve_name(name)
    if os.path.isdir(path) or is_cifar_network(path):
        return revision
    try:
        commit = resolve_revision(path, revision=revision).resolved
    except HUB_ERRORS as error:
        raise InputError(f"model {path} cannot be loaded: {_reason(error, path, revision)}") from error
    if PartialState().is_main_process:
        print(f"{name} -> {path}@{commit}")
    return commit


def save_processor(processor: BaseImageProcessor, folder: str) -> None:
    """Save an image processor beside its model; timm's stands in the model's config.json already."""
    if not isinstance(processor, TimmWrapperImageProcessor):
        processor.save_pretrained(folder)


def _architecture(path: str, revision: str | None, trust_remote_code: bool) -> PreTrainedConfig:
    """The configuration of a model; that of a timm architecture or a CIFAR network needs no download."""
    if is_cifar_network(path):
        return CifarConfig(architecture=path.removeprefix(CIFAR), num_labels=100)
    if (config := _timm_config(path)) is not None:
        return config
    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except HUB_ERRORS as error:
        raise InputError(f"model {path} cannot be loaded: {_reason(error, path, revision)}") from error


def _timm_config(path: str) -> TimmWrapperConfig | None:
    """The configuration of a timm architecture, from the installed timm; None for any other model."""
    architecture = path.removeprefix("timm/")
    if os.path.isdir(path) or not path.startswith("timm/") or not timm.is_model(architecture):
        return None
    pretrained = timm.get_pretrained_cfg(architecture).to_dict()
    config = {"architecture": architecture.split(".")[0], "num_classes": pretrained["num_classes"]}
    return TimmWrapperConfig.from_dict(config | {"pretrained_cfg": pretrained})


def _reason(error: Exception, path: str, revision: str | None = None) -> str:
    """Why a model cannot be loaded, and what to do."""
    if "trust_remote_code" in str(error):
        return "it runs code of its own: read that code, then give --trust_remote_code, or choose another model."
    if (reason := hub_reason(error, path, revision=revision)) is not None:
        return reason
    if "Can't load image processor" in str(error):
        if constants.is_offline_mode() and not os.path.isdir(path):
            return _reason(OfflineModeIsEnabled(), path)
        return "it has no image processor: give a model with a preprocessor_config.json."
    if "model.safetensors" in str(error):
        if not os.path.isdir(path):  # transformers says so too of a file that did not come
            try:
                file_exists(path, "model.safetensors", revision=revision)
            except HUB_ERRORS as refusal:
                return _reason(refusal, path, revision)
        return (
            "it has no model.safetensors, and pickled weights (pytorch_model.bin) are not read, as they can run code: "
            "convert them, or take the architecture only (--student_init random)."
        )
    return first_sentence(error)


def _names(config: PreTrainedConfig, num_labels: int | None, label_names: Sequence[str] | None) -> Sequence[str] | None:
    """The names that a model's classes shall have; None: those of its config."""
    if label_names is not None:
        return list(label_names)
    return None if num_labels in (None, config.num_labels) else [f"LABEL_{i}" for i in range(num_labels)]


def _load_weights(path: str, revision: str | None, trust_remote_code: bool) -> tuple[PreTrainedModel, set[str]]:
    """The model with its own head, and the names of the parameters that its checkpoint lacks."""
    try:
        model, info = AutoModelForImageClassification.from_pretrained(
            path,
            revision=revision,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
        )
    except (*HUB_ERRORS, ImportError, SafetensorError) as error:
        raise InputError(f"model {path} cannot be loaded: {_reason(error, path, revision)}") from error
    if info["mismatched_keys"]:
        name, found, wanted = sorted(info["mismatched_keys"])[0]
        raise InputError(
            f"model {path}: its config.json does not fit its weights, such as {name} of shape {tuple(found)}, "
            f"expected {tuple(wanted)}: give the folder that save_pretrained wrote."
        )
    return model, set(info["missing_keys"])
