"""Teacher: what the student listens to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .errors import InputError
from .labels import match_labels
from .models import class_names
from .views import View


def logits_of(outputs: object) -> Tensor:
    """The logits (N, C) in what a model returned: a tensor, an output with `.logits`, a tuple that begins with them."""
    if isinstance(outputs, Tensor):
        return outputs
    return outputs.logits if hasattr(outputs, "logits") else outputs[0]


class Teacher:
    """A frozen model that turns a batch into logits in the student's label space, on the student's device.

    It is no `nn.Module`: whatever holds it never sees its parameters, so they reach neither the optimizer nor a
    checkpoint.

    Args:
        model: image classifier; frozen and set to eval mode here, and cast to `dtype` when that is given.
        dtype: precision of its forward pass, also under autocast; None keeps the model's own.
        columns: index (C,) of the teacher's class for each of the student's classes; None when they are the same.
        renormalize: (scale, shift), each of shape (3,): teacher pixels = student pixels * scale + shift, for a
            teacher whose view differs from the student's in mean and std only.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype | None = None,
        columns: Tensor | None = None,
        renormalize: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        if dtype is not None:
            self.model.to(dtype)
        self.dtype = dtype
        self.columns = columns
        self.renormalize = renormalize and tuple(t.view(3, 1, 1) for t in renormalize)
        self._finite = False

    @classmethod
    def matched(
        cls,
        model: PreTrainedModel,
        view: View,
        student_view: View,
        label_names: Sequence[str],
        *,
        label_map: Mapping[str, str] | None = None,
        dtype: torch.dtype | None = None,
        source_name: str = "teacher",
        target_name: str = "data set",
    ) -> Teacher:
        """The teacher in the label space of a data set, fed with the student's pixels where its own view allows.

        Raises:
            InputError: classes that do not match by name; see `match_labels`, whose last arguments these are.
        """
        names = class_names(model)
        columns = match_labels(names, label_names, label_map, source_name=source_name, target_name=target_name)
        alike, same = view.same_geometry(student_view), view.same_normalization(student_view)
        return cls(
            model,
            dtype=dtype,
            columns=None if columns == list(range(len(names))) else torch.tensor(columns),
            renormalize=None if same or not alike else student_view.renormalize_to(view),
        )

    @property
    def num_labels(self) -> int | None:
        """Number of classes of its logits; None when the model does not tell."""
        if self.columns is not None:
            return len(self.columns)
        return getattr(getattr(self.model, "config", None), "num_labels", None)

    def to(self, device: torch.device) -> Teacher:
        """Move everything the teacher needs to `device`."""
        self.model.to(device)
        if self.columns is not None:
            self.columns = self.columns.to(device)
        if self.renormalize is not None:
            self.renormalize = tuple(t.to(device) for t in self.renormalize)
        return self

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (N, C) for a batch with `pixel_values` (N, 3, H, W), or `teacher_pixel_values` where views differ.

        Raises:
            InputError: the first batch's logits are not finite.
        """
        own = "teacher_pixel_values" in batch
        pixels = batch["teacher_pixel_values" if own else "pixel_values"]
        if self.renormalize is not None and not own:
            scale, shift = self.renormalize
            pixels = torch.addcmul(shift, pixels, scale)
        parameter = next(self.model.parameters(), pixels)
        with nullcontext() if self.dtype is None else torch.autocast(pixels.device.type, enabled=False):
            logits = logits_of(self.model(pixels.to(parameter.dtype)))
        if self.columns is not None:
            logits = logits.index_select(-1, self.columns)
        if not self._finite:
            self._check(logits)
        return logits

    def _check(self, logits: Tensor) -> None:
        bad = (~logits.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            raise InputError(
                f"the teacher's logits are NaN or infinite for {len(bad)} of the first batch's {len(logits)} images "
                f"(rows {bad[:5]}): check its weights, or use --teacher_dtype float32."
            )
        self._finite = True
