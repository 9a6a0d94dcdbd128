"""The weights of a checkpoint: read from safetensors alone, and compared with what the model expects."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..errors import InputError
from .heads import backbone_name
from .kinds import SEGMENTER, Kind
from .load_errors import explained

# What DistributedDataParallel (module) and torch.compile (_orig_mod) add to parameter names: pattern -> replacement.
WRAPPERS = {r"^(?:(?:module|_orig_mod)\.)+": "", r"\._orig_mod\.": "."}


@dataclass
class Loaded:
    """A model and what its checkpoint lacks."""

    model: PreTrainedModel
    missing: set[str]
    """Names of the tensors that the checkpoint lacks, which are random."""
    unexpected: set[str]
    """Names in the checkpoint that the model does not have."""


def load_weights(
    path: str,
    config: PreTrainedConfig,
    kind: Kind,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    resized: frozenset[str] | set[str] = frozenset(),
) -> Loaded:
    """The model of a configuration in float32, with the weights of a checkpoint.

    Args:
        path: folder or id on the Hub.
        config: its configuration, which may have other classes.
        kind: what the model is.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code from the repository.
        resized: names of the tensors that may have another shape in the checkpoint; they are initialised anew.

    Raises:
        InputError: no safetensors weights, or tensors of another shape.
    """
    with explained(f"model {path} cannot be loaded", path, revision), _quiet():
        model, info = kind.auto.from_pretrained(
            path,
            config=config,
            revision=revision,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
            key_mapping=WRAPPERS,
        )
    # save_pretrained reverses what renamed the weights, and would put the wrappers' names back.
    used = getattr(model, "_weight_conversions", None) or []
    model._weight_conversions = [each for each in used if not WRAPPERS.keys() & set(each.source_patterns)] or None
    mismatched = sorted(row for row in info["mismatched_keys"] if row[0] not in resized)
    if mismatched:
        name, found, wanted = mismatched[0]
        raise InputError(
            f"model {path}: its config.json does not fit its weights, such as {name} of shape {tuple(found)}, "
            f"expected {tuple(wanted)}: use a folder that save_pretrained wrote, or correct config.json."
        )
    missing = {name for name in info["missing_keys"] if not name.endswith("num_batches_tracked")}  # a mere counter
    return Loaded(check_takes_pixels(model, path), missing, set(info["unexpected_keys"]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out transformers' table of what a checkpoint lacks: whoever loads it here says so in a sentence."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def check_takes_pixels(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """The model itself.

    Raises:
        InputError: its forward pass takes something else than `pixel_values`.
    """
    if model.main_input_name == "input_ids" or "pixel_values" not in inspect.signature(model.forward).parameters:
        raise InputError(
            f"model {path} takes {model.main_input_name} instead of pixel_values: choose a model that takes images."
        )
    return model


def check_backbone(loaded: Loaded, head: set[str], path: str, kind: Kind) -> None:
    """Let only the head of a student be random, with what belongs to it.

    Of a classifier these are layers such as a pooler; of a segmenter all but the backbone, as a checkpoint of its
    encoder alone has no decoder.

    Raises:
        InputError: the checkpoint lacks other tensors.
    """
    model = loaded.model
    backbone = backbone_name(model)
    if kind is SEGMENTER and backbone is not None:
        parents = {name for name, _ in model.named_children()} - {backbone}
    else:
        parents = {name.rsplit(".", 2)[0] for name in head if name.count(".") > 1} - {model.base_model_prefix}
    belongs = re.compile("|".join([r"(?:.*\.)?(?:pooler|fc_norm)\.", *(re.escape(p) + r"\." for p in sorted(parents))]))
    lacking = sorted(name for name in loaded.missing - head if not belongs.match(name))
    if lacking:
        others = f" and has others, such as {min(loaded.unexpected)}" if loaded.unexpected else ""
        raise InputError(
            f"model {path}: its file of weights lacks {len(lacking)} of the model's {len(model.state_dict())} "
            f"tensors, such as {lacking[0]},{others}: rename what the file has, or train from random weights "
            "(--student_init random)."
        )
