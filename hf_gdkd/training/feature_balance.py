"""Automatic weights of losses on features: their gradients beside that of the cross-entropy, at the same features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..errors import InputError

EVERY = 10  # steps from one measurement to the next; the first ten are all measured
SPAN = 10  # measurements that a running mean looks back on
SCALE = 2.0**12  # of the losses while they are measured: small gradients would vanish in float16, as under --fp16

Taps = Sequence[tuple[Tensor, Tensor]]  # what a module of the student returned, and what a loss reads of it


class FeatureBalance(nn.Module):
    """Finds the weights that make the gradients of losses on features lambda times the reference's.

    Both are taken where they meet: at the output of the last module of the student that the loss reads. From the logits
    to there it is mostly a head and a pooling, so that the reference's gradient costs little. Norms are over all
    micro-batches and processes of an optimizer step. They are measured in the first ten steps, and in every tenth
    from then on.

    Args:
        factors: lambda by loss.
    """

    def __init__(self, factors: Mapping[str, float]) -> None:
        super().__init__()
        self._factors = dict(factors)
        self.register_buffer("norms", torch.zeros(2, len(factors)))  # of the reference, of the losses
        self.register_buffer("measurements", torch.zeros(()))
        self.begin_step(0)

    def begin_step(self, step: int) -> None:
        """Forget the gradients of the step before; `step` is the number of those that are done."""
        self._measures = step < EVERY or step % EVERY == 0
        self._squares: Tensor | None = None

    def note(self, logits: Tensor, reference: Tensor, terms: Mapping[str, Tensor], taps: Mapping[str, Taps]) -> None:
        """Note a micro-batch, before its backward pass.

        Args:
            logits: of the student.
            reference: the gradient of the reference at the logits.
            terms: every loss, as its share of the mean over the optimizer step.
            taps: what each reads, from shallow to deep.

        Raises:
            InputError: the logits do not depend on what a loss reads.
        """
        if not self._measures:
            return
        found = []
        for name in self._factors:
            read = [tap for _, tap in taps[name]]
            scale = torch.full_like(terms[name], SCALE)
            own = torch.autograd.grad(terms[name], read, scale, retain_graph=True, allow_unused=True) if read else []
            reached = [(output, g) for (output, _), g in zip(taps[name], own, strict=True) if g is not None]
            down = None
            if reached:
                output, scaled = reached[-1][0], SCALE * reference
                (down,) = torch.autograd.grad(logits, output, scaled, retain_graph=True, allow_unused=True)
            if down is None:
                raise InputError(
                    f"the logits do not depend on the last features that {name or 'the loss'} reads: its weight cannot "
                    "be auto, so use a number."
                )
            norms = [torch.linalg.vector_norm(each, dtype=torch.float32) for each in (down, reached[-1][1])]
            found.append((torch.stack(norms) / SCALE) ** 2)
        squares = torch.stack(found, 1)
        self._squares = squares if self._squares is None else self._squares + squares

    @property
    def names(self) -> list[str]:
        return list(self._factors)

    @torch.no_grad()
    def end_step(self, accelerator: Accelerator) -> None:
        """Take the step's norms into the means; all processes call this."""
        if self._squares is None:
            return
        norms = accelerator.reduce(self._squares, "sum").sqrt()
        self.measurements += 1
        self.norms += (norms - self.norms) / self.measurements.clamp(max=SPAN)

    def weights(self, scale: float) -> dict[str, Tensor]:
        """The weights of the present step; `scale` is the weight of the reference."""
        found = zip(self._factors.items(), *self.norms, strict=True)
        return {
            name: torch.where(norm > 0, factor * scale * reference / norm, 0)
            for (name, factor), reference, norm in found
        }
