"""The losses of many students at once: each kind of loss is computed for all students that have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from ..errors import InputError
from ..losses import DistillationLoss, FeatureLoss, Features
from ..losses.combined import is_auto
from ..training.balance import SPAN
from ..training.config import GDKDConfig
from ..training.trainer import GDKDTrainer


class Term:
    """One loss, or one with other weights of its parts, of some of the students; a mean over the batch for each.

    Args:
        loss: of the first of them.
        students: their numbers, ascending.
        losses: of each.
        seen: the numbers of the outputs of student and teacher that it compares: of the logits, or of stages and, last,
            the pooled features.
    """

    def __init__(
        self,
        loss: DistillationLoss,
        students: Sequence[int],
        losses: Sequence[DistillationLoss],
        seen: tuple[list[int], list[int]],
        device: torch.device,
    ) -> None:
        self.loss, self.seen, self.parts = loss, seen, list(loss.weights)
        self.students = torch.tensor(students, device=device)
        self.weights = torch.tensor([[one.weights[part] for part in self.parts] for one in losses], device=device)
        learned = [dict(one.named_parameters()) for one in losses]
        self.learned = {
            name: nn.Parameter(torch.stack([own[name].detach() for own in learned]).to(device)) for name in learned[0]
        }

    def __call__(self, student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The values (students,) of what it compares, (students, N, ...) each."""

        def one(
            learned: Mapping[str, Tensor], student: Sequence[Tensor], teacher: Sequence[Tensor], y: Tensor
        ) -> Tensor:
            learned = {f"loss.{name}": value for name, value in learned.items()}
            parts = functional_call(_Parts(self.loss), learned, (self._input(student), self._input(teacher), y))
            return torch.stack([part.mean() for part in parts])

        values = vmap(one, randomness="different")(self.learned, list(student), list(teacher), labels)
        return (values * self.weights).sum(1)

    def _input(self, outputs: Sequence[Tensor]) -> Tensor | Features:
        return Features(outputs[:-1], outputs[-1]) if isinstance(self.loss, FeatureLoss) else outputs[0]


class _Parts(nn.Module):
    def __init__(self, loss: DistillationLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, *inputs: Any) -> list[Tensor]:
        return list(self.loss.parts(*inputs).values())


class StackedLosses:
    """What the trainers' `compute_loss` and `Balance` do, for all their students: gradients at the outputs.

    Args:
        trainers: each with its loss, weights and label smoothing; ce_weight is above 0.
        layers: of the features of student and teacher, by name, in their order behind the logits.
    """

    def __init__(self, trainers: Sequence[GDKDTrainer], layers: tuple[list[str], list[str]]) -> None:
        device, n = trainers[0].args.device, len(trainers)
        for trainer in trainers:
            check_stackable(trainer.args)
            if trainer.balance is not None and trainer.balance.features is not None:
                raise InputError(
                    f"{trainer.args.output_dir} finds the weight of a loss on features, which a stack cannot: use a "
                    "number, or train without --stacked."
                )
        self.smoothing = torch.tensor([each.args.label_smoothing_factor for each in trainers], device=device)
        self.ce_weight = torch.tensor([each.args.ce_weight for each in trainers], device=device)
        self.terms = self._group(trainers, layers, device)
        self.fixed = torch.zeros(len(self.terms), n, device=device)
        self.factor = torch.zeros(len(self.terms), n, device=device)  # lambda; 0: the weight is a number
        for m, term in enumerate(self.terms):
            for j in term.students.tolist():
                name, trainer = self._names[m, j], trainers[j]
                weight = trainer._weights[name]
                if is_auto(weight):
                    self.factor[m, j] = trainer.balance._factors[name] * trainer.args.kd_factor
                else:
                    self.fixed[m, j] = weight * trainer.args.kd_factor
        self.norms = torch.zeros(1 + len(self.terms), n, device=device)  # running means, the cross-entropy's first
        self.steps = torch.zeros((), device=device)

    def _group(
        self, trainers: Sequence[GDKDTrainer], layers: tuple[list[str], list[str]], device: torch.device
    ) -> list[Term]:
        found: dict[tuple, list] = {}
        for j, trainer in enumerate(trainers):
            for name, loss in trainer.parts.members.items():
                listening = trainer.parts._listening.get(name)
                key = (type(loss), tuple(loss.weights), repr(loss) if listening else _fingerprint(loss, trainer))
                found.setdefault(key, []).append((j, name, loss, listening))
        terms, self._names = [], {}
        for members in found.values():
            students, names, losses, listening = zip(*members, strict=True)
            seen = ([0], [0])
            if listening[0]:
                hooks = zip(layers, (listening[0].student, listening[0].teacher), strict=True)
                seen = tuple(
                    [*(1 + where.index(layer) for layer in own.layers), 1 + len(where)] for where, own in hooks
                )
            self._names |= {(len(terms), j): name for j, name in zip(students, names, strict=True)}
            terms.append(Term(losses[0], students, losses, seen, device))
        return terms

    def state(self) -> list[Tensor]:
        return [self.norms, self.steps]

    def __call__(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor, row: Tensor
    ) -> tuple[list[Tensor], dict[nn.Parameter, Tensor]]:
        """The gradients at the students' outputs (students, N, ...), and of what the losses learn.

        Teacher's outputs (seeds, N, ...) and labels (seeds, N) are those of each student's seed, `row`.
        """
        outputs = [each.detach() for each in student]
        learned: dict[nn.Parameter, Tensor] = {}
        gradients = [torch.zeros_like(each) for each in outputs]
        norms = torch.zeros_like(self.norms)
        logits = outputs[0].clone().requires_grad_()
        (own,) = torch.autograd.grad(self._ce(logits, labels[row]), logits)
        norms[0] = own.flatten(1).norm(dim=1)
        gradients[0] += own * self.ce_weight.view(-1, 1, 1)
        weights = self.weights()
        for m, term in enumerate(self.terms):
            who = term.students
            leaves = [outputs[i][who].requires_grad_() for i in term.seen[0]]
            values = term(leaves, [teacher[i][row[who]] for i in term.seen[1]], labels[row[who]])
            weight = weights[m, who]
            if isinstance(term.loss, FeatureLoss):  # what it learns is under its weight too
                values, weight = values * weight, torch.ones_like(weight)
            found = torch.autograd.grad(values.sum(), [*leaves, *term.learned.values()], allow_unused=True)
            for i, gradient in zip(term.seen[0], found, strict=False):
                if gradient is not None:
                    gradients[i].index_add_(0, who, gradient * weight.view(-1, *[1] * (gradient.ndim - 1)))
            learned |= dict(zip(term.learned.values(), found[len(leaves) :], strict=True))
            if not isinstance(term.loss, FeatureLoss):
                norms[1 + m] = norms[1 + m].index_add(0, who, found[0].flatten(1).norm(dim=1))
        self.steps += 1
        self.norms += (norms - self.norms) / self.steps.clamp(max=SPAN)
        return gradients, learned

    def weights(self) -> Tensor:
        """The weight of every term for every student, (terms, students)."""
        found = self.factor * (self.norms[0] * self.ce_weight) / self.norms[1:]
        return torch.where(self.factor > 0, torch.where(self.norms[1:] > 0, found, 0), self.fixed)

    def _ce(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of all students, each a mean over the batch, summed."""
        log_p = F.log_softmax(logits, -1)
        own = -log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1).mean(1)
        return ((1 - self.smoothing) * own - self.smoothing * log_p.mean((1, 2))).sum()


def check_stackable(args: GDKDConfig) -> None:
    """Refuse what the losses of a stack do not have.

    Raises:
        InputError: a ramp of kd_weight, class weights, a binary cross-entropy, no cross-entropy, clipping, gradient
            accumulation or mixed precision.
    """
    wanted = dict.fromkeys(("kd_skip_epochs", "kd_warmup_epochs", "max_grad_norm"), 0)
    wanted |= dict.fromkeys(("binary_cross_entropy", "bf16", "fp16"), False)
    wanted |= {"class_weights": None, "gradient_accumulation_steps": 1}
    for name, value in wanted.items():
        if getattr(args, name) != value:
            raise InputError(
                f"{name} is {getattr(args, name)}: --stacked needs {value}; set it, or leave --stacked out."
            )
    if args.ce_weight == 0:
        raise InputError("ce_weight is 0: --stacked needs a cross-entropy of labels; leave --stacked out.")


def _fingerprint(loss: DistillationLoss, trainer: GDKDTrainer) -> tuple[float, ...]:
    """The parts of a loss on fixed logits: alike for losses that differ in the weights of their parts alone."""
    classes, made = trainer.model.config.num_labels, torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 16, classes, generator=made)
    parts = loss.parts(student, teacher, torch.randint(classes, (16,), generator=made))
    return tuple(float(part.double().mean()) for part in parts.values())
