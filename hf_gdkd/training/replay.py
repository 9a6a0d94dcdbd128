"""Repeats the optimizer step at which a run was stopped, from the files that it left."""

from __future__ import annotations

import os
from typing import Any

import torch
from safetensors.torch import load_file

from .optimization import PROJECTIONS_FILE
from .stopped_step import BadStep, set_random_state
from .teacher_matching import teachers_of
from .trainer import GDKDTrainer


def repeat_step(trainer: GDKDTrainer, checkpoint: str) -> dict[str, Any]:
    """Compute the losses and the gradients of the step at which a run was stopped; the weights are not updated.

    The micro-batches of all processes follow each other on this one, each with its own random numbers.

    Args:
        trainer: with the student, the teacher and the arguments of the run.
        checkpoint: the one that the run named when it was stopped.

    Returns:
        `step`; `found`, the summed parts of the loss and the norm of the gradients (before clipping), and `recorded`,
        the same of the run; `gradients`, the names of the weights whose gradients are not finite.

    Raises:
        InputError: the checkpoint holds no step.
    """
    parts = BadStep.load(checkpoint)
    trainer._load_from_checkpoint(checkpoint)
    if trainer.projections.state_dict():
        trainer.projections.load_state_dict(load_file(os.path.join(checkpoint, PROJECTIONS_FILE)))
    trainer.state.global_step, trainer.steps_per_epoch = parts[0].step - 1, parts[0].steps_per_epoch
    trainer._tried = True  # neither loss nor teacher is tried first, or the step would end where it is bad
    for teacher in teachers_of(trainer.teacher):
        teacher.checked = True
    trainer.finite.forget()
    trainer.is_in_train = True
    model = trainer.accelerator.prepare_model(trainer.model)  # its precision
    size = trainer.step_size([batch for part in parts for batch in part.batches], parts[0].samples)
    for part in parts:
        set_random_state(trainer.args.device, part.random)
        for batch in part.batches:
            trainer.training_step(model, batch, size)
    scaler = getattr(trainer.accelerator, "scaler", None)
    scale = scaler.get_scale() if scaler is not None else 1.0
    named = [*trainer.model.named_parameters(), *trainer.projections.named_parameters()]
    gradients = {name: p.grad / scale for name, p in named if p.grad is not None}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    sums = trainer.finite.sums  # None in a step without any loss
    found = dict(zip(trainer.finite.names, [] if sums is None else sums.tolist(), strict=True))
    return {
        "step": parts[0].step,
        "found": found | {"gradients": float(norm)},
        "recorded": dict(parts[0].found),
        "gradients": [name for name, gradient in gradients.items() if not gradient.isfinite().all()],
    }
