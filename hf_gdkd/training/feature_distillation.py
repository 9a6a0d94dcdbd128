"""Training with a loss on hidden features: what it listens to, and the projections that learn beside the student."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from ..errors import InputError
from ..losses import FeatureLoss, Features
from .feature_hooks import FeatureHooks
from .refusals import StrictTrainer
from .teacher import Teacher

PROJECTIONS_FILE = "projections.safetensors"


class ProjectionsTrainer(StrictTrainer):
    """A Trainer that trains `projections` beside the model: in its optimizer, gradient norm and checkpoints.

    They are no part of the model, and are not saved with it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.projections = nn.ModuleList()
        super().__init__(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        decayed = self.get_decay_parameter_names(self.projections)
        for weight_decay, decays in ((self.args.weight_decay, True), (0.0, False)):
            named = [(name, p) for name, p in self.projections.named_parameters() if (name in decayed) == decays]
            if new := [p for _, p in named if id(p) not in known]:
                optimizer.add_param_group({"params": new, "weight_decay": weight_decay})
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return super()._clip_grad_norm(self._all_trained(model))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Any:
        return super()._get_grad_norm(self._all_trained(model), grad_norm)

    def _all_trained(self, model: nn.Module) -> nn.Module:
        return nn.ModuleList([model, self.projections]) if len(self.projections) else model

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and (state := self.projections.state_dict()):
            save_file(state, os.path.join(output_dir, PROJECTIONS_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.projections.state_dict():
            self.projections.load_state_dict(load_file(os.path.join(checkpoint, PROJECTIONS_FILE)))


class FeatureDistillation:
    """A loss on features at work: its terms from what student and teacher computed on the way to their logits.

    Args:
        loss: its projections are built here, for the shapes of the example.
        student: the student.
        teacher: the teacher.
        example: a batch of two samples.
        parallel: several processes train: projections start alike, and their gradients are averaged.

    Raises:
        InputError: a layer that is none of a model's, or features that the loss needs and a model has not.
    """

    def __init__(
        self,
        loss: FeatureLoss,
        student: nn.Module,
        teacher: Teacher,
        example: Mapping[str, Tensor],
        *,
        parallel: bool = False,
    ) -> None:
        def run_student() -> None:
            training = student.training
            student.eval()(example["pixel_values"])
            student.train(training)

        layers = [getattr(loss, f"{who}_layers", None) for who in ("student", "teacher")]
        if None not in layers and len(layers[0]) != len(layers[1]):
            raise InputError(
                f"student_layers names {len(layers[0])} modules and teacher_layers {len(layers[1])}: they are compared "
                "one with one, so name as many."
            )
        self.student = FeatureHooks(student, run_student, layers[0], name="student")
        self.teacher = FeatureHooks(teacher.model, lambda: teacher(example), layers[1], name="teacher")
        with torch.no_grad(), self.collecting():
            run_student()
            teacher(example)
        loss.build(self.student.take(), self.teacher.take())
        device = example["pixel_values"].device
        self._parts: nn.Module = _Parts(loss.to(device))
        if parallel and list(loss.parameters()):
            self._parts = DistributedDataParallel(self._parts, [device] if device.type == "cuda" else None)

    @classmethod
    def of_trainer(cls, loss: FeatureLoss, trainer: Trainer, teacher: Teacher | object) -> FeatureDistillation:
        """For a trainer's student and data set.

        Raises:
            InputError: also a way of training in which a model's own forward pass cannot be listened to.
        """
        args = trainer.args
        if not isinstance(teacher, Teacher):
            raise InputError(f"loss {args.loss} is on hidden features, of one model: give one --teacher, not several.")
        if args.n_gpu > 1 or args.torch_compile or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise InputError(
                f"loss {args.loss} listens to the student's modules, which torch_compile, FSDP, DeepSpeed and several "
                "GPUs in one process replace: leave these out, and start one process for each GPU (accelerate launch)."
            )
        sample = next(iter(trainer.train_dataset))
        example = trainer._prepare_inputs(trainer.data_collator([sample, sample]))
        return cls(loss, trainer.model, teacher, example, parallel=args.world_size > 1)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """While this is open, the forward passes of both models leave what `parts` needs."""
        with self.student.collecting(), self.teacher.collecting():
            yield

    def parts(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The unweighted terms of the features that were computed with these logits."""
        return self._parts(self.student.take(), self.teacher.take(), labels)


class _Parts(nn.Module):
    """`parts` as the forward pass of a module, as DistributedDataParallel wants it."""

    def __init__(self, loss: FeatureLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Features, teacher: Features, labels: Tensor | None) -> dict[str, Tensor]:
        return self.loss.parts(student, teacher, labels)
