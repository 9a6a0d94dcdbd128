"""Many small students trained at once on one device, where a step of all takes little longer than that of one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from ..data.views import normalized
from ..losses import Features
from ..training.feature_distillation import FeatureDistillation
from ..training.feature_hooks import FeatureHooks
from ..training.teacher import logits_of
from ..training.trainer import GDKDTrainer

STREAMS = 16  # on which the losses of different students are computed side by side


class Stack:
    """Trains the students of several trainers, each as its own trainer would, in one run.

    The loss of every student is computed by its own trainer's `compute_loss`. Their forward and backward passes are
    one, over stacked weights, and so is the optimizer step; on a GPU all of it is a CUDA graph. The trainers share
    architecture, teacher, optimizer, schedule, number of epochs and size of batches, and may differ in seed, loss,
    weights and label smoothing. One process, full precision, no gradient accumulation and no clipping.

    Args:
        trainers: not yet trained; `train_dataset` is an `Augmented`.
        steps: optimizer steps of the whole training.
    """

    def __init__(self, trainers: Sequence[GDKDTrainer], steps: int) -> None:
        self.trainers, self.device = list(trainers), trainers[0].args.device
        self.model = copy.deepcopy(trainers[0].model).train()
        self.params, self.buffers = stack_module_state([each.model.train() for each in trainers])
        self.seeds = list(dict.fromkeys(each.args.seed for each in trainers))
        self.row = torch.tensor([self.seeds.index(each.args.seed) for each in trainers], device=self.device)
        self.teacher = next((each.teacher for each in trainers if each.teacher is not None), None)
        self.listening = [_listening(each) for each in trainers]
        self._share_hooks()
        self.logits = [_Slice() for _ in trainers]
        for trainer, slice_, listening in zip(self.trainers, self.logits, self.listening, strict=True):
            if trainer.teacher is not None:
                trainer.teacher = slice_.teacher
            for each in listening:
                each.student.take, each.teacher.take = slice_.student_features(each), slice_.teacher_features(each)
        self.optimizer, self.rates = self._make_optimizer(steps)
        self._graphs: dict[int, _Step] = {}

    def _share_hooks(self) -> None:
        """One reader of features for all students, of every layer that a loss listens to; likewise of the teacher."""
        every = [each for listening in self.listening for each in listening]
        self.hooks: dict[str, FeatureHooks] = {}
        for who, model in (("student", self.model), ("teacher", self.teacher and self.teacher.model)):
            if every:
                own = getattr(every[0], who)
                shared = self.hooks[who] = copy.copy(own)
                shared.layers = list(dict.fromkeys(name for each in every for name in getattr(each, who).layers))
                names = {id(module): name for name, module in own.model.named_modules()}
                shared.head = None if own.head is None else model.get_submodule(names[id(own.head)])
                shared.model, shared._seen, shared.apart = model, {}, False

    def _make_optimizer(self, steps: int) -> tuple[torch.optim.Optimizer, list[float]]:
        """The first trainer's optimizer over stacked weights and all projections; the learning rate of every step."""
        first = self.trainers[0]
        for each in self.trainers:
            each.steps_per_epoch = 1
            each.create_optimizer_and_scheduler(steps)
        rates = []
        for _ in range(steps):
            rates.append(first.lr_scheduler.get_last_lr()[0])
            first.optimizer.step()  # nothing: there are no gradients
            first.lr_scheduler.step()
        names = {id(p): name for name, p in first.model.named_parameters()}
        groups: list[dict[str, Any]] = []
        for each in self.trainers:
            own = {id(p) for p in each.model.parameters()}
            for group in each.optimizer.param_groups:
                params = [p for p in group["params"] if id(p) not in own]
                if each is first:
                    params = [self.params[names[id(p)]] for p in group["params"] if id(p) in own] + params
                if params:
                    groups.append({"params": params, "weight_decay": group["weight_decay"]})
        rate = torch.tensor(rates[0], device=self.device)
        defaults, kind = first.optimizer.defaults, type(first.optimizer)
        kept = {key: defaults[key] for key in ("momentum", "nesterov", "betas", "eps") if key in defaults}
        kept |= (
            {"fused": True} if kind is torch.optim.SGD else {"fused": None, "capturable": self.device.type == "cuda"}
        )
        return kind(groups, lr=rate, **kept), rates

    def train(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Take one step a batch: pixels (seeds, N, 3, H, W) of 8 bits and labels (seeds, N), on the device."""
        for step, (pixels, labels) in enumerate(batches):
            if labels.shape[1] not in self._graphs:
                self._graphs[labels.shape[1]] = _Step(self, pixels, labels)
            for group in self.optimizer.param_groups:
                group["lr"].fill_(self.rates[step + self.taken])
            self._graphs[labels.shape[1]](pixels, labels)
        self.taken += step + 1

    taken = 0  # steps

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Logits (students, N, C), stages and pooled features of pixels (students, N, 3, H, W)."""

        def one(params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images: Tensor) -> tuple:
            hooks = self.hooks.get("student")
            with nullcontext() if hooks is None else hooks.collecting():
                logits = logits_of(functional_call(self.model, (params, buffers), (images,)))
            return (logits, *_flat(hooks))

        return vmap(one, randomness="different")(self.params, self.buffers, pixels)

    @torch.no_grad()
    def accuracy(self, pixels: Tensor, labels: Tensor, size: int = 250) -> Tensor:
        """The top-1 accuracy of every student, (students,), on normalised pixels (seeds, N, 3, H, W)."""
        self.model.eval()

        def one(params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images: Tensor) -> Tensor:
            return logits_of(functional_call(self.model, (params, buffers), (images,)))

        right = [
            (vmap(one)(self.params, self.buffers, images[self.row]).argmax(-1) == wanted[self.row]).sum(1)
            for images, wanted in zip(pixels.split(size, 1), labels.split(size, 1), strict=True)
        ]
        self.model.train()
        return torch.stack(right).sum(0) / labels.shape[1]

    def weights(self) -> dict[str, Tensor]:
        """Copies of everything that a student is, stacked."""
        return {name: value.detach().clone() for name, value in (self.params | self.buffers).items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in (self.params | self.buffers).items():
                value.copy_(weights[name])

    def finite(self) -> Tensor:
        """Which students have weights that are all finite, (students,)."""
        return torch.stack([p.detach().flatten(1).isfinite().all(1) for p in self.params.values()]).all(0)


class _Step:
    """One optimizer step of a stack, for batches of one size."""

    def __init__(self, stack: Stack, pixels: Tensor, labels: Tensor) -> None:
        self.stack, self.pixels, self.labels = stack, pixels.clone(), labels.clone()
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.rows = stack.row.tolist()
        if stack.device.type == "cuda":
            self._capture()

    def __call__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels.copy_(pixels)
        self.labels.copy_(labels)
        if not self.graphs:
            self._forward()
            for j in range(len(self.stack.trainers)):
                self._loss(j)
            self._backward()
            return
        first, *losses, last = self.graphs
        first.replay()
        main = torch.cuda.current_stream()
        for stream, graph in zip(self.streams, losses, strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                graph.replay()
            main.wait_stream(stream)
        last.replay()

    def _forward(self) -> None:
        stack = self.stack
        images = normalized(
            {"pixel_values": self.pixels.flatten(0, 1)}, stack.trainers[0].train_dataset.transform.views
        )
        shape = self.labels.shape
        self.images = images["pixel_values"].unflatten(0, shape)
        if stack.teacher is not None:
            hooks = stack.hooks.get("teacher")
            with torch.no_grad(), nullcontext() if hooks is None else hooks.collecting():
                logits = stack.teacher({"pixel_values": images["pixel_values"]})
            self.taught = [None if each is None else each.unflatten(0, shape) for each in (logits, *_flat(hooks))]
        self.student = [each for each in stack.forward(self.images[stack.row]) if each is not None]
        self.gradients = [torch.zeros_like(each) for each in self.student]

    def _loss(self, j: int) -> None:
        """The gradient of one student's loss at its logits and features, and of its projections."""
        stack, row = self.stack, self.rows[j]
        trainer = stack.trainers[j]
        leaves = [each[j].detach().requires_grad_() for each in self.student]
        stack.logits[j].fill(leaves, [each[row] for each in self.taught] if trainer.teacher else [], stack.hooks)
        if trainer.balance is not None:
            trainer.balance.begin_step()
        batch = {"pixel_values": self.images[row], "labels": self.labels[row]}
        loss = trainer.compute_loss(stack.logits[j], batch, num_items_in_batch=self.labels.shape[1])
        learned = [p for p in trainer.projections.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, [*leaves, *learned], allow_unused=True)
        for whole, gradient in zip(self.gradients, found, strict=False):
            if gradient is not None:
                whole[j].copy_(gradient)
        for p, gradient in zip(learned, found[len(leaves) :], strict=True):
            p.grad = gradient
        if trainer.balance is not None:
            trainer.balance.end_step(trainer.accelerator)
            trainer.balance._since_log = trainer.balance._since_epoch = None

    def _backward(self) -> None:
        params = list(self.stack.params.values())
        for p, gradient in zip(params, torch.autograd.grad(self.student, params, self.gradients), strict=True):
            p.grad = gradient
        self.stack.optimizer.step()

    def _capture(self) -> None:
        stack = self.stack
        jobs = range(len(stack.trainers))
        state = self._state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what is only done once, such as the choice of algorithms
            for _ in range(3):
                self._forward()
                for j in jobs:
                    self._loss(j)
                self._backward()
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, before in state:
            tensor.copy_(before)
        parts = [self._forward]
        parts += [lambda own=jobs[i::STREAMS]: [self._loss(j) for j in own] for i in range(min(STREAMS, len(jobs)))]
        parts += [self._backward]
        self.streams = [torch.cuda.Stream() for _ in parts[1:-1]]
        pool = torch.cuda.graph_pool_handle()  # of both passes of the students
        for part in parts:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, **({"pool": pool} if part in (self._forward, self._backward) else {})):
                part()
            self.graphs.append(graph)

    @torch.no_grad()
    def _state(self) -> list[tuple[Tensor, Tensor]]:
        """Everything that a step changes, with copies; what an optimizer does not have yet begins with 0."""
        stack = self.stack
        tensors = [*stack.params.values(), *stack.buffers.values()]
        for trainer in stack.trainers:
            tensors += [*trainer.projections.parameters(), *trainer.projections.buffers()]
        pairs = [(each.detach(), each.detach().clone()) for each in tensors]
        if not stack.optimizer.state:
            for group in stack.optimizer.param_groups:
                for p in group["params"]:
                    p.grad = torch.zeros_like(p)
            for group in stack.optimizer.param_groups:
                group["lr"].zero_()
            stack.optimizer.step()
            for own in stack.optimizer.state.values():
                for value in own.values():
                    if isinstance(value, Tensor):
                        value.zero_()
        pairs += [
            (value, value.clone())
            for own in stack.optimizer.state.values()
            for value in own.values()
            if isinstance(value, Tensor)
        ]
        return pairs


class _Slice(nn.Module):
    """Stands for one student, and for its teacher, when its trainer computes the loss: their outputs are known."""

    def fill(self, student: Sequence[Tensor], taught: Sequence[Tensor], hooks: Mapping[str, FeatureHooks]) -> None:
        self.outputs = {"student": student, "teacher": taught}
        self.layers = {who: each.layers for who, each in hooks.items()}

    def forward(self, pixels: Tensor) -> Tensor:
        return self.outputs["student"][0]

    def teacher(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.outputs["teacher"][0]

    def student_features(self, loss: FeatureDistillation) -> Callable[[], Features]:
        return lambda: self._features("student", loss.student.layers)

    def teacher_features(self, loss: FeatureDistillation) -> Callable[[], Features]:
        return lambda: self._features("teacher", loss.teacher.layers)

    def _features(self, who: str, layers: Sequence[str]) -> Features:
        _, *stages = self.outputs[who]
        every = self.layers[who]
        pooled = stages.pop() if len(stages) > len(every) else None
        return Features([stages[every.index(name)] for name in layers], pooled)


def _listening(trainer: GDKDTrainer) -> list[FeatureDistillation]:
    return list(trainer.parts._listening.values())


def _flat(hooks: FeatureHooks | None) -> list[Tensor]:
    """The features of the last forward pass: the stages, then the pooled ones if there are any."""
    if hooks is None:
        return []
    stages, pooled = hooks.take()
    return [*stages, *([] if pooled is None else [pooled])]
