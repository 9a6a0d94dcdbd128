"""Load models and image processors by name: Hub ids, short names, timm ids, folders, networks of the paper."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from accelerate import PartialState
from huggingface_hub import resolve_revision
from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerImageProcessor,
    ViTImageProcessor,
)
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from ..errors import InputError
from .configuration import check_architectures, names_of, read_config, timm_config, with_labels, with_options
from .heads import build_model, head_parameters, renew_head
from .kinds import CLASSIFIER, Kind
from .load_errors import explained
from .names import is_cifar_network, is_own_network, is_segmentation_network, resolve_name, weights_source
from .student_start import start_from_teacher
from .weights import check_backbone, check_takes_pixels, load_weights

logger = logging.getLogger(__name__)

INITS = ("pretrained", "random", "teacher")
"""What a student may start from."""


def load_model(
    name: str,
    *,
    num_labels: int | None = None,
    label_names: Sequence[str] | None = None,
    init: str = "pretrained",
    teacher: PreTrainedModel | None = None,
    label_map: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load or build an image classifier in float32, by name.

    Args:
        name: Hub id, short name, timm id, local folder, or CIFAR network (without names or number: 100 classes).
        num_labels: number of classes, when their names are not known; a pretrained head of that size is kept.
        label_names: names of the classes, which become id2label and label2id. A pretrained head keeps the rows of
            the classes that match by name; the other rows are newly initialised, and a warning counts both.
        init: "pretrained" loads the weights, "random" the architecture alone; "teacher" starts from the weights of
            `teacher`, as `start_from_teacher` does. A CIFAR network has no pretrained weights.
        teacher, label_map: with `init` "teacher", what `start_from_teacher` takes.
        config: values of the configuration to change, such as {"num_hidden_layers": 6}; of a timm model arguments of
            its constructor, such as {"depth": 6}.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code from the repository; without it, a repository that needs it is refused.

    Raises:
        InputError: no such model, no safetensors weights, weights that lack more than the head, a configuration that
            does not fit, a model that does not take RGB images, remote code without `trust_remote_code`, or what
            `start_from_teacher` raises.

    Examples:
        >>> from hf_gdkd.models import load_model
        >>> model = load_model("cifar/resnet8", label_names=["cat", "dog"], init="random")
        >>> model.config.id2label
        {0: 'cat', 1: 'dog'}
    """
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    start = {"init": init, "teacher": teacher, "label_map": label_map, "config": config}
    return load_student(name, CLASSIFIER, num_labels=num_labels, label_names=label_names, **start, **source)


def load_student(
    name: str,
    kind: Kind,
    *,
    num_labels: int | None = None,
    label_names: Sequence[str] | None = None,
    init: str = "pretrained",
    teacher: PreTrainedModel | None = None,
    label_map: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    **source: Any,
) -> PreTrainedModel:
    """Load or build a model of a kind; the arguments are those of `load_model`."""
    if init not in INITS or (init == "teacher") != (teacher is not None):
        raise InputError(f"init is {init!r}: use one of {', '.join(INITS)}, and a teacher with init teacher alone.")
    path = resolve_name(name)
    pretrained = possible_init(name, init) == "pretrained"
    changed = with_options(read_config(path, kind, **source, installed=not pretrained), config or {}, path)
    check_architectures(changed, path, kind, weights=pretrained)
    names = _names(changed, num_labels, label_names)
    if pretrained:
        return _with_head(weights_source(path), changed, kind, names, source)
    with explained(f"model {path} cannot be built", path, source["revision"]):
        model = build_model(with_labels(changed, names), kind, source["trust_remote_code"])
    check_takes_pixels(model, path)
    if teacher is not None:
        start_from_teacher(model, teacher, label_map)
    return model


def _with_head(
    path: str, config: PreTrainedConfig, kind: Kind, names: list[str], source: dict[str, Any]
) -> PreTrainedModel:
    """Load a pretrained model with a head for the classes `names`, in which the rows of its own classes are kept."""
    own = names_of(config) if config.num_labels else []  # a backbone has none
    if own == names:
        loaded = load_weights(path, with_labels(config, names), kind, **source)
        if loaded.missing:
            check_backbone(loaded, _head(path, config, kind, source), path, kind)
            logger.warning("%s: newly initialised: %s.", path, ", ".join(sorted(loaded.missing)))
        return loaded.model
    head, old = _head(path, config, kind, source), {}
    if own:  # the old head; the model around it is dropped, so that there is never more than one in memory
        loaded = load_weights(path, copy.deepcopy(config), kind, **source)
        old = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items() if name in head}
        old = {} if head & loaded.missing else old
        del loaded
    loaded = load_weights(path, with_labels(config, names), kind, **source, resized=head)
    check_backbone(loaded, head, path, kind)
    kept = renew_head(loaded.model, head, old, own)
    new = len(names) - kept
    message = "student's head: %d of %d classes keep their pretrained weights, %d are newly initialised."
    logger.warning(message, kept, len(names), new)
    if rest := loaded.missing - head:  # such as a pooler
        logger.warning("%s: newly initialised: %s.", path, ", ".join(sorted(rest)))
    return loaded.model


def _head(path: str, config: PreTrainedConfig, kind: Kind, source: dict[str, Any]) -> set[str]:
    with explained(f"model {path} cannot be built", path, source["revision"]):
        return head_parameters(config, partial(kind.auto.from_config, trust_remote_code=source["trust_remote_code"]))


def possible_init(name: str, init: str) -> str:
    """The `init` that `load_model` will use: "random", with a warning, where "pretrained" finds no weights."""
    path = resolve_name(name)
    if init == "pretrained" and is_cifar_network(path):
        logger.warning("%s has no pretrained weights: it starts from random ones.", path)
        return "random"
    return init


def load_teacher(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load an image classifier with all of its weights, by name.

    Raises:
        InputError: as `load_model`, and a checkpoint that lacks any part of the model, such as the head.
    """
    return load_trained(name, CLASSIFIER, revision=revision, trust_remote_code=trust_remote_code)


def load_trained(name: str, kind: Kind, **source: Any) -> PreTrainedModel:
    """Load a model of a kind with all of its weights; the arguments are those of `load_teacher`."""
    path = resolve_name(name)
    if is_own_network(path):
        lacks = "weights" if is_cifar_network(path) else "weights for its head"
        raise InputError(
            f"teacher {path} has no {lacks}: train it first (--student {path} --loss ce), then use its folder."
        )
    config = read_config(path, kind, **source)
    check_architectures(config, path, kind, weights=True)
    if not config.num_labels:
        raise InputError(f"teacher {path} has no classes: choose a checkpoint with a trained {kind.head}.")
    names_of(config)  # an error if they are not all there
    loaded = load_weights(path, config, kind, **source)
    if loaded.missing:
        raise InputError(
            f"teacher {path} has no weights for {', '.join(sorted(loaded.missing)[:4])}, which would be random: "
            f"choose a checkpoint with a trained {kind.head}."
        )
    return loaded.model


def load_processor(
    name: str, *, init: str = "pretrained", revision: str | None = None, trust_remote_code: bool = False
) -> BaseImageProcessor:
    """Load the image processor that belongs to a model; the arguments are those of `load_model`.

    A timm model's comes from its repository; with another `init` than "pretrained" from the installed timm, and then
    nothing is downloaded.

    Raises:
        InputError: there is none.
    """
    path = resolve_name(name)
    if is_cifar_network(path):  # the size, mean and standard deviation of the paper's CIFAR-100 experiments
        mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
        return ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=mean, image_std=std)
    if is_segmentation_network(path):  # images of any size; that of the paper's crops of Cityscapes
        return SegformerImageProcessor(do_resize=False, size={"height": 512, "width": 1024})
    if init != "pretrained" and (config := timm_config(path)) is not None:
        return TimmWrapperImageProcessor(config.pretrained_cfg, config.architecture)
    with explained(f"the image processor of {path} cannot be loaded", path, revision):
        processor = AutoImageProcessor.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    if hasattr(processor, "reduce_labels"):  # the old name, which transformers 5 keeps and does not heed
        processor.do_reduce_labels = processor.reduce_labels
        del processor.reduce_labels
    return processor


def pin_revision(name: str, revision: str | None) -> str | None:
    """Resolve a revision of a model on the Hub to its current commit, and print it; a local model's is returned as is.

    DeepLabV3's and PSPNet's is that of their backbone. Without a network it is the commit in the cache.

    Raises:
        InputError: no such model or revision, or no access to it; no network, and nothing in the cache.
    """
    path = weights_source(resolve_name(name))
    if path is None or os.path.isdir(path):
        return revision
    with explained(f"model {path} cannot be loaded", path, revision):
        commit = resolve_revision(path, revision=revision).resolved
    if PartialState().is_main_process:
        print(f"{name} -> {path}@{commit}")
    return commit


def save_processor(processor: BaseImageProcessor, folder: str) -> None:
    """Save an image processor beside its model; timm's is part of the model's config.json already."""
    if not isinstance(processor, TimmWrapperImageProcessor):
        processor.save_pretrained(folder)


def _names(config: PreTrainedConfig, num_labels: int | None, label_names: Sequence[str] | None) -> list[str]:
    """The names for a model's classes: the requested ones, numbered ones, or its own."""
    if label_names is not None:
        return list(label_names)
    if num_labels not in (None, config.num_labels):
        return [f"LABEL_{i}" for i in range(num_labels)]
    if not config.num_labels:
        raise InputError("the model has no classes: set label_names or num_labels.")
    return names_of(config)
