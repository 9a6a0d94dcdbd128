"""Teacher: what the student listens to; one model, or several whose probabilities are averaged."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data.segmentation_views import view_of
from ..data.views import View
from ..errors import InputError
from ..models.class_matching import match_labels
from ..models.heads import class_names
from ..models.kinds import CLASSIFIER, Kind
from ..models.loading import load_processor, load_trained
from .label_maps import logits_at

logger = logging.getLogger(__name__)


def logits_of(outputs: object) -> Tensor:
    """The logits (N, C) in what a model returned: a tensor, `.logits`, `["logits"]`, or a tuple that begins with them.

    Raises:
        InputError: there are none.
    """
    if isinstance(outputs, tuple | list) and outputs:
        outputs = outputs[0]
    elif isinstance(outputs, Mapping):  # also an output class of transformers
        outputs = outputs.get("logits", outputs)
    elif not isinstance(outputs, Tensor):
        outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor):
        keys = f" with {', '.join(map(repr, outputs))}" if isinstance(outputs, Mapping) else ""
        raise InputError(
            f"a model returned a {type(outputs).__name__}{keys}; expected logits (N, C), alone or as `logits`: "
            "choose a model with a classification head."
        )
    return outputs


def num_labels_of(model: nn.Module | None) -> int | None:
    """The number of classes in a model's config; None for other modules, whose config may be that of their backbone."""
    return model.config.num_labels if isinstance(model, PreTrainedModel) else None


class Teacher:
    """A frozen model that turns a batch into logits in the student's label space, on the student's device.

    It is not an `nn.Module`: whatever holds it never sees its parameters, so they reach neither the optimizer nor a
    checkpoint. Without a view it takes the student's pixels and classes as they are; with one, GDKDTrainer matches it
    to the student unless `match` was called before.

    >>> import torch
    >>> from hf_gdkd import Teacher
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
    >>> teacher = Teacher(model, columns=torch.tensor([7, 2, 4]))  # the student knows three of its ten classes
    >>> teacher({"pixel_values": torch.zeros(5, 3, 8, 8)}).shape
    torch.Size([5, 3])

    Args:
        model: image classifier; frozen and set to eval mode here, and cast to `dtype` if that is set.
        dtype: precision of its forward pass, also under autocast, as a dtype or its name; None keeps the model's own,
            or that of autocast.
        columns: index (C,) of the teacher's class for each of the student's classes; None when they are the same.
        renormalize: (scale, shift), each of shape (3,): teacher pixels = student pixels * scale + shift, for a
            teacher whose view differs from the student's in mean and std only.
        view: how the model sees an image; None: as the student does.
        name: what messages call it.
        pixels: key of its own view in a batch; without it, `pixel_values` serve.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype | str | None = None,
        columns: Tensor | None = None,
        renormalize: tuple[Tensor, Tensor] | None = None,
        view: View | None = None,
        name: str = "teacher",
        pixels: str = "teacher_pixel_values",
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.dtype: torch.dtype | None = None
        if dtype is not None:
            self.cast(dtype)
        self.columns, self.view, self.name, self.pixels = columns, view, name, pixels
        self.renormalize = renormalize and tuple(t.view(3, 1, 1) for t in renormalize)
        self.matched = view is None
        self._student_view: View | None = None
        self.checked = False

    def cast(self, dtype: torch.dtype | str) -> None:
        """Set the precision of the forward pass, as a dtype or its name."""
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.model.to(self.dtype)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        kind: Kind = CLASSIFIER,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> Teacher:
        """A teacher with its own view, by the name of a model; see `models.load_teacher` for names and errors."""
        source = {"revision": revision, "trust_remote_code": trust_remote_code}
        processor = load_processor(name, **source)
        model = load_trained(name, kind, **source)
        return cls(model, view=view_of(processor, model), name=name, **options)

    def match(
        self,
        label_names: Sequence[str],
        student_view: View | None,
        label_map: Mapping[str, str] | None = None,
        *,
        data_name: str = "data set",
    ) -> None:
        """Answer in the label space of a data set, fed with the student's pixels where its own view allows that.

        Sets `columns`, and `renormalize` where the views differ in mean and std. Where `student_view` is None, or of
        another size, every batch must hold the teacher's own view.

        Raises:
            InputError: classes that do not match by name; see `match_labels`.
        """
        names = class_names(self.model)
        columns = match_labels(names, label_names, label_map, source_name=self.name, target_name=data_name)
        self.columns = None if columns == list(range(len(names))) else torch.tensor(columns)
        self.matched, self._student_view, self.renormalize, self.checked = True, student_view, None, False
        if student_view is not None and not self.view.same_normalization(student_view):
            scale, shift = student_view.renormalize_to(self.view)
            self.renormalize = scale.view(3, 1, 1), shift.view(3, 1, 1)

    @property
    def num_labels(self) -> int | None:
        """Number of classes of its logits; None when the model does not tell."""
        if self.columns is not None:
            return len(self.columns)
        return num_labels_of(self.model)

    @property
    def keys(self) -> tuple[str, ...]:
        """What it reads in a batch beside `pixel_values`."""
        return (self.pixels,)

    def to(self, device: torch.device) -> Teacher:
        """Move everything the teacher needs to `device`.

        Raises:
            InputError: it does not fit there.
        """
        if device.type == "cuda":
            self._check_memory(device)
        self.model.to(device)
        if self.columns is not None:
            self.columns = self.columns.to(device)
        if self.renormalize is not None:
            self.renormalize = tuple(t.to(device) for t in self.renormalize)
        return self

    def _check_memory(self, device: torch.device) -> None:
        needed = sum(t.nbytes for t in self.model.parameters() if t.device.type != device.type)
        free, _ = torch.cuda.mem_get_info(device)
        if needed > free:
            raise InputError(
                f"the teacher {self.name} takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on {device}: "
                "use --teacher_dtype bfloat16, a smaller teacher, or, with several processes, --shard_teacher true."
            )

    def compile(self, **options: Any) -> None:
        """Compile the model's forward pass; options as `torch.compile`'s."""
        self.model.compile(**options)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (N, C) for a batch with `pixel_values` (N, 3, H, W), or `teacher_pixel_values` where views differ.

        Raises:
            InputError: pixels that it cannot take, or logits of the first batch that are not finite.
        """
        own = self.pixels in batch
        pixels = batch[self.pixels if own else "pixel_values"]
        if not own and self.view is not None and self.matched:
            self._check_pixels(pixels)
        if self.renormalize is not None and not own:
            scale, shift = self.renormalize
            pixels = torch.addcmul(shift, pixels, scale)
        parameter = next(self.model.parameters(), pixels)
        with nullcontext() if self.dtype is None else torch.autocast(pixels.device.type, enabled=False):
            logits = logits_of(self.model(pixels.to(parameter.dtype)))
        if self.columns is not None:
            logits = logits.index_select(1, self.columns)
        if not self.checked:
            self._check(logits)
        return logits

    def _check_pixels(self, pixels: Tensor) -> None:
        """Refuse the student's pixels where mean and std are not all that differs."""
        student, own, reason = self._student_view, self.view, None
        if student is None:
            reason = "the mean and std of the student's pixels are unknown"
        elif getattr(own, "fixed", True) and tuple(pixels.shape[-2:]) != tuple(own.size):
            reason = "it takes images of {} x {}, and the batch has {} x {}".format(*own.size, *pixels.shape[-2:])
        elif student.channels != own.channels:
            reason = "its colour channels have another order"
        if reason is not None:
            known = "" if student is not None else "pass the student's image processor as processing_class, or "
            raise InputError(
                f"the teacher {self.name} cannot be fed with the student's pixel_values, as {reason}: {known}add the "
                f"teacher's own view of each image to the data as {self.pixels}, such as with "
                f"TrainTransform(student_view, {{{self.pixels!r}: teacher.view}}) in hf_gdkd.data."
            )
        if not self.checked and not own.same_geometry(student):
            logger.warning(
                "teacher %s: its image processor resizes in another way (%s) than the student's (%s), whose pixels it "
                "is fed with; add its own view to the data as %s to avoid that.",
                self.name, own.interpolation.value, student.interpolation.value, self.pixels,
            )  # fmt: skip

    def _check(self, logits: Tensor) -> None:
        bad = (~logits.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            raise InputError(
                f"the teacher's logits are NaN or infinite for {len(bad)} of the first batch's {len(logits)} images "
                f"(rows {bad[:5]}): check its weights, or use --teacher_dtype float32."
            )
        self.checked = True


def mean_prediction(logits: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The logarithm of the weighted mean of the probabilities (T = 1) of logits (N, C) each: (N, C) in float32.

    Logits of maps, (N, C, h, w), are brought to the resolution of the first.

    Raises:
        InputError: another number of weights than of logits, or a weight that is not positive.
    """
    weights = [1.0] * len(logits) if weights is None else list(weights)
    if len(weights) != len(logits) or not all(math.isfinite(w) and w > 0 for w in weights):
        raise InputError(
            f"teacher_weights are {weights}: expected one positive number for each of {len(logits)} teachers."
        )
    log_weights = [math.log(w / sum(weights)) for w in weights]
    size = tuple(logits[0].shape[2:]) or None
    pairs = zip(logits, log_weights, strict=True)
    return torch.stack([logits_at(each, size).float().log_softmax(1) + w for each, w in pairs]).logsumexp(0)


class Ensemble:
    """Several teachers as one, by the mean of their probabilities; each has a view and columns of its own.

    They run one after the other: beside their weights, the activations of one are held at a time, and all logits.
    """

    def __init__(self, teachers: Sequence[Teacher], weights: Sequence[float] | None = None) -> None:
        self.teachers, self.weights = list(teachers), weights

    @property
    def num_labels(self) -> int | None:
        return next((teacher.num_labels for teacher in self.teachers if teacher.num_labels is not None), None)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for teacher in self.teachers for key in teacher.keys)

    def to(self, device: torch.device) -> Ensemble:
        for teacher in self.teachers:
            teacher.to(device)
        return self

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Log-probabilities (N, C) in float32; errors as `mean_prediction`'s."""
        return mean_prediction([teacher(batch) for teacher in self.teachers], self.weights)
