"""Training with a loss on hidden features: what it listens to, and the projections that learn beside the student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from ..errors import InputError
from ..losses import FeatureLoss, Features
from .feature_hooks import FeatureHooks
from .teacher import Teacher


class FeatureDistillation:
    """A loss on features at work: its terms from what student and teacher computed on the way to their logits.

    Args:
        loss: its projections are built here, for the shapes of the example.
        student: the student.
        teacher: the teacher.
        example: a batch of two samples.
        parallel: several processes train: projections start alike, and their gradients are averaged.

    Raises:
        InputError: a layer that a model does not have, or features that the loss needs and a model lacks.
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
        self.student = FeatureHooks(student, run_student, layers[0], taps=loss.taps, name="student")
        self.teacher = FeatureHooks(teacher.model, lambda: teacher(example), layers[1], taps=loss.taps, name="teacher")
        self.student.apart = True  # so that automatic weights measure the loss alone
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
            raise InputError(f"loss {args.loss} is on hidden features, of one model: use one --teacher, not several.")
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
