"""Name -> model and image processor: Hub ids, short names, timm ids, local folders, the paper's CIFAR networks."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from difflib import get_close_matches

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
from .cifar import canonical
from .cifar.configuration import CifarConfig
from .class_matching import matching_rows

logger = logging.getLogger(__name__)

# Short names for the command line; each stands for a checkpoint with an ImageNet-1k head.
SHORT_NAMES = {
    "google/vit-base": "google/vit-base-patch16-224",
    "vit-base": "google/vit-base-patch16-224",
    "google/vit-large": "google/vit-large-patch16-224",
    "vit-large": "google/vit-large-patch16-224",
    "deit-tiny": "facebook/deit-tiny-patch16-224",
    "deit-small": "facebook/deit-small-patch16-224",
    "deit-base": "facebook/deit-base-patch16-224",
    "swin-tiny": "microsoft/swin-tiny-patch4-window7-224",
    "resnet-18": "microsoft/resnet-18",
    "resnet-50": "microsoft/resnet-50",
    "mobilenet-v2": "google/mobilenet_v2_1.0_224",
}

CIFAR = "cifar/"  # what the names of the paper's CIFAR networks begin with


def resolve_name(name: str) -> str:
    """The local folder, the full Hub id or the CIFAR network (`cifar/resnet8x4`) that a name means.

    Raises:
        InputError: a folder that does not exist, or a name that is neither a short name, a timm id, a CIFAR network
            nor an `organization/name`; close matches are listed.
    """
    if os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, "config.json")):
            raise InputError(f"folder {name} holds no config.json: give a folder that save_pretrained wrote.")
        return name
    if name.lower().startswith(CIFAR):
        return CIFAR + canonical(name[len(CIFAR) :])
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    if timm.is_model(name.removeprefix("timm/")):
        architecture = name.removeprefix("timm/")
        try:
            tag = timm.get_pretrained_cfg(architecture).tag
        except RuntimeError as error:
            close = timm.list_pretrained(f"{architecture.split('.')[0]}.*")
            raise InputError(f"timm has no weights {architecture}: choose one of {', '.join(close)}.") from error
        return f"timm/{architecture}" if "." in architecture or not tag else f"timm/{architecture}.{tag}"
    if name.count("/") == 1 and not name.startswith((".", "~", "/")):
        return name
    if "/" in name:
        raise InputError(f"no folder {name}: give an existing folder, or an id on the Hub (organization/name).")
    close = get_close_matches(name, [*SHORT_NAMES, *timm.list_models()], n=5)
    hint = f"did you mean {', '.join(close)}" if close else f"short names are {', '.join(SHORT_NAMES)}"
    raise InputError(f"unknown model {name!r}: {hint}? A Hub id is organization/name.")


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
    """
    path = resolve_name(name)
    if possible_init(name, init) == "random":
        config = _architecture(path, revision, trust_remote_code)
        config = _with_labels(config, _names(config, num_labels, label_names))
        try:
            return _from_config(config, trust_remote_code)
        except (ValueError, RuntimeError, ImportError) as error:
            raise InputError(f"model {path} cannot be built: {_reason(error, path)}") from error
    model, missing = _load_weights(path, revision, trust_remote_code)
    if missing:
        logger.warning("%s: newly initialised: %s.", path, ", ".join(sorted(missing)))
    names = _names(model.config, num_labels, label_names)
    return model if names is None else _fit_head(model, names, trust_remote_code)


def possible_init(name: str, init: str) -> str:
    """`init` of `load_model`; "random", which is said, where it is "pretrained" and there are no weights."""
    path = resolve_name(name)
    if init == "pretrained" and _is_network(path):
        logger.warning("%s has no pretrained weights: it starts from random ones.", path)
        return "random"
    return init


def load_teacher(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """An image classifier with all its weights, by name.

    Raises:
        InputError: as `load_model`, and a checkpoint that lacks a part of the model, such as the head.
    """
    path = resolve_name(name)
    if _is_network(path):
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
    if _is_network(path):  # the size, mean and standard deviation of the paper's CIFAR-100 experiments
        mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
        return ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=mean, image_std=std)
    if init == "random" and (config := _timm_config(path)) is not None:
        return TimmWrapperImageProcessor(config.pretrained_cfg, config.architecture)
    try:
        return AutoImageProcessor.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except HUB_ERRORS as error:
        reason = _reason(error, path, revision)
        raise InputError(f"the image processor of {path} cannot be loaded: {reason}") from error


def class_names(model: PreTrainedModel) -> list[str]:
    """The names of a model's classes, in the order of its logits."""
    return [model.config.id2label[i] for i in range(model.config.num_labels)]


def pin_revision(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a model on the Hub stands for now, printed with the full id; else as given.

    Without a network it is the commit in the cache.

    Raises:
        InputError: no such model or revision, or one that the Hub does not show with this token; no network, and
            nothing in the cache.
    """
    path = resolve_name(name)
    if os.path.isdir(path) or _is_network(path):
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


def _is_network(path: str) -> bool:
    """Whether a resolved name is one of the paper's CIFAR networks: an architecture without weights."""
    return path.startswith(CIFAR) and not os.path.isdir(path)


def _architecture(path: str, revision: str | None, trust_remote_code: bool) -> PreTrainedConfig:
    """The configuration of a model; that of a timm architecture or a CIFAR network needs no download."""
    if _is_network(path):
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


def _with_labels(config: PreTrainedConfig, label_names: Sequence[str] | None) -> PreTrainedConfig:
    if label_names is not None:
        config.id2label = dict(enumerate(label_names))
        config.label2id = {label: i for i, label in enumerate(label_names)}
    return config


def _from_config(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    model = AutoModelForImageClassification.from_config(
        config, trust_remote_code=trust_remote_code, dtype=torch.float32
    )
    if isinstance(config, TimmWrapperConfig):
        # The wrapper draws every weight anew with a standard deviation of 0.02: take timm's own initialisation.
        fresh = timm.create_model(config.architecture, num_classes=config.num_labels, **(config.model_args or {}))
        model.timm_model.load_state_dict(fresh.state_dict())
    return model


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


def _fit_head(model: PreTrainedModel, label_names: list[str], trust_remote_code: bool) -> PreTrainedModel:
    """The model with one output a class: rows of its head that match by name are kept."""
    old_names = class_names(model)
    if old_names == label_names:
        return model
    config = _with_labels(copy.deepcopy(model.config), label_names)
    fitted = _from_config(config, trust_remote_code)
    # The head is what would change its shape with one class more.
    probe = _from_config(_with_labels(copy.deepcopy(config), [*label_names, "one more"]), trust_remote_code)
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
