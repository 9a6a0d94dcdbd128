"""Load models that give each pixel a class by name, and read the logits of their heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import PreTrainedModel

from .kinds import SEGMENTER
from .loading import load_student, load_trained


def load_segmenter(
    name: str,
    *,
    label_names: Sequence[str] | None = None,
    init: str = "pretrained",
    teacher: PreTrainedModel | None = None,
    label_map: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load or build a model for semantic segmentation in float32, by name.

    The name may be that of an encoder, such as nvidia/mit-b0: its decoder is newly initialised, and a warning says so.

    Args:
        name: Hub id, or local folder.
        label_names: names of the classes, which become id2label and label2id. A pretrained head keeps the rows of
            the classes that match by name; the other rows are newly initialised, and a warning counts both.
        init, teacher, label_map, config: as `hf_gdkd.models.load_model` takes them.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code from the repository; without it, a repository that needs it is refused.

    Raises:
        InputError: as `hf_gdkd.models.load_model`; AutoModelForSemanticSegmentation does not know the model.
    """
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    start = {"init": init, "teacher": teacher, "label_map": label_map, "config": config}
    return load_student(name, SEGMENTER, label_names=label_names, **start, **source)


def load_segmentation_teacher(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a model for semantic segmentation with all of its weights, by name.

    Raises:
        InputError: as `load_segmenter`, and a checkpoint that lacks any part of the model, such as the decoder.
    """
    return load_trained(name, SEGMENTER, revision=revision, trust_remote_code=trust_remote_code)


@torch.no_grad()
def takes_any_size(model: nn.Module) -> bool:
    """Whether a segmenter takes images of another size than its own, as most do."""
    training, parameter = model.training, next(model.parameters())
    try:
        model.eval()(torch.zeros(1, 3, 96, 160, dtype=parameter.dtype, device=parameter.device))
    except (ValueError, RuntimeError, AssertionError):
        return False
    finally:
        model.train(training)
    return True


def segment(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, list[tuple[Tensor, float]]]:
    """Run a segmenter once; returns its logits, and those of its auxiliary head with their weight in the loss.

    The models of transformers add up the loss of that head by themselves and do not return its logits: a hook reads
    them where the head gives them, before they are enlarged.

    Args:
        model: it may be wrapped, as for several processes.
        pixel_values: (N, 3, H, W), as its image processor makes them.

    Returns:
        Logits (N, C, h, w), and a list of pairs, empty where there is no auxiliary head: logits (N, C, h2, w2), often
        of another resolution, and `auxiliary_loss_weight` of the configuration.

    Examples:
        >>> import torch
        >>> from hf_gdkd.models import segment
        >>> from transformers import SegformerConfig, SegformerForSemanticSegmentation
        >>> model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=5))
        >>> logits, auxiliary = segment(model, torch.zeros(1, 3, 64, 96))
        >>> logits.shape, auxiliary
        (torch.Size([1, 5, 16, 24]), [])
    """
    plain = extract_model_from_parallel(model)
    head, seen = getattr(plain, "auxiliary_head", None), []
    if head is None:
        return model(pixel_values).logits, seen
    hook = head.register_forward_hook(lambda head, args, output: seen.append(output))
    try:
        logits = model(pixel_values).logits
    finally:
        hook.remove()
    return logits, [(each, plain.config.auxiliary_loss_weight) for each in seen]
