"""Many small students trained at once on one device, where a step of all takes little longer than that of one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..training.feature_distillation import FeatureDistillation
from ..training.feature_hooks import FeatureHooks
from ..training.teacher import logits_of
from ..training.trainer import GDKDTrainer
from .stacked_losses import StackedLosses


class Stack:
    """Trains the students of several trainers, each as its own trainer would, in one run.

    The students' forward and backward passes are one, over stacked weights, and so are the losses and the optimizer
    step; on a GPU all of it is a CUDA graph. The trainers share architecture, teacher, optimizer, schedule, number of
    epochs and size of batches, and may differ in seed, loss, weights and label smoothing. For losses with a
    cross-entropy of labels, in one process, without gradient accumulation, clipping and a ramp of `kd_weight`.

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
        self._share_hooks([each for trainer in trainers for each in trainer.parts._listening.values()])
        self.losses = StackedLosses(trainers, tuple(self.hooks[who].layers for who in self.hooks) or ([], []))
        self.optimizer, self.rates = self._make_optimizer(steps)
        for p in (p for group in self.optimizer.param_groups for p in group["params"]):
            p.grad = torch.zeros_like(p)
        self._graphs: dict[int, _Step] = {}  # by the size of a batch
        self.taken = 0  # steps

    def _share_hooks(self, every: Sequence[FeatureDistillation]) -> None:
        """One reader of features for all students, of every layer that a loss listens to; likewise of the teacher."""
        self.hooks: dict[str, FeatureHooks] = {}
        for who, model in (("student", self.model), ("teacher", self.teacher and self.teacher.model)):
            if every:
                own = getattr(every[0], who)
                shared = self.hooks[who] = copy.copy(own)
                shared.layers = list(dict.fromkeys(name for each in every for name in getattr(each, who).layers))
                names = {id(module): name for name, module in own.model.named_modules()}
                shared.head = model.get_submodule(names[id(own.head)])
                shared.model, shared._seen = model, {}

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
        decay = {
            id(p): group["weight_decay"]
            for each in self.trainers
            for group in each.optimizer.param_groups
            for p in group["params"]
        }
        of = {self.params[name]: decay[id(own)] for name, own in first.model.named_parameters()}
        for term in self.losses.terms:
            of |= {p: decay[id(own)] for p, own in zip(term.learned.values(), term.loss.parameters(), strict=True)}
        groups = [
            {"params": [p for p in of if of[p] == each], "weight_decay": each} for each in dict.fromkeys(of.values())
        ]
        rate = torch.tensor(rates[0], device=self.device)
        defaults, kind = first.optimizer.defaults, type(first.optimizer)
        kept = {key: defaults[key] for key in ("momentum", "nesterov", "betas", "eps") if key in defaults}
        kept |= (
            {"fused": True} if kind is torch.optim.SGD else {"fused": None, "capturable": self.device.type == "cuda"}
        )
        return kind(groups, lr=rate, **kept), rates

    def train(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Take one step a batch: normalised pixels (seeds, N, 3, H, W) and labels (seeds, N), on the device."""
        for step, (pixels, labels) in enumerate(batches):
            if labels.shape[1] not in self._graphs:
                self._graphs[labels.shape[1]] = _Step(self, pixels, labels)
            for group in self.optimizer.param_groups:
                group["lr"].fill_(self.rates[step + self.taken])
            self._graphs[labels.shape[1]](pixels, labels)
        self.taken += step + 1

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Logits (students, N, C), stages and pooled features of pixels (seeds, N, 3, H, W)."""

        def one(params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images: Tensor) -> tuple:
            hooks = self.hooks.get("student")
            with nullcontext() if hooks is None else hooks.collecting():
                logits = logits_of(functional_call(self.model, (params, buffers), (images,)))
            return (logits, *_flat(hooks))

        if self.device.type == "cpu":  # stacked convolutions and products are slower there than one after another
            images = [each.contiguous(memory_format=torch.channels_last) for each in pixels]
            own = [{name: value.unbind() for name, value in of.items()} for of in (self.params, self.buffers)]
            outputs = [
                one(*({name: values[j] for name, values in of.items()} for of in own), images[seed])
                for j, seed in enumerate(self.row.tolist())
            ]
            return tuple(torch.stack(each) for each in zip(*outputs, strict=True))
        with sdpa_kernel(SDPBackend.MATH):  # the others have no stacked form on a GPU
            return vmap(one)(self.params, self.buffers, pixels[self.row])

    @torch.no_grad()
    def accuracy(self, pixels: Tensor, labels: Tensor, size: int = 250) -> Tensor:
        """The top-1 accuracy of every student, (students,), on normalised pixels (seeds, N, 3, H, W)."""
        self.model.eval()
        right = [
            (self.forward(images)[0].argmax(-1) == wanted[self.row]).sum(1)
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
        self.graph: torch.cuda.CUDAGraph | None = None
        if stack.device.type == "cuda":
            self._capture()

    def __call__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels.copy_(pixels)
        self.labels.copy_(labels)
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()

    def _run(self) -> None:
        stack, shape = self.stack, self.labels.shape
        taught: list[Tensor] = []
        if stack.teacher is not None:
            hooks = stack.hooks.get("teacher")
            with torch.no_grad(), nullcontext() if hooks is None else hooks.collecting():
                logits = stack.teacher({"pixel_values": self.pixels.flatten(0, 1)})
            taught = [each.unflatten(0, shape) for each in (logits, *_flat(hooks))]
        outputs = stack.forward(self.pixels)
        gradients, learned = stack.losses(outputs, taught, self.labels, stack.row)
        params = list(stack.params.values())
        found = torch.autograd.grad(outputs, params, gradients)
        torch._foreach_copy_([p.grad for p in (*params, *learned)], [*found, *learned.values()])
        stack.optimizer.step()

    def _capture(self) -> None:
        state = self._state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what is only done once, such as the choice of algorithms
            for _ in range(3):
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad():
            for tensor, before in state:
                tensor.copy_(before)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        self.graph = graph

    @torch.no_grad()
    def _state(self) -> list[tuple[Tensor, Tensor]]:
        """Everything that a step changes, with copies; what an optimizer does not have yet begins with 0."""
        stack = self.stack
        tensors = [*stack.params.values(), *stack.buffers.values(), *stack.losses.state()]
        tensors += [p for term in stack.losses.terms for p in term.learned.values()]
        pairs = [(each.detach(), each.detach().clone()) for each in tensors]
        if not stack.optimizer.state:
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


def _flat(hooks: FeatureHooks | None) -> list[Tensor]:
    """The features of the last forward pass: the stages, then the pooled ones if there are any."""
    if hooks is None:
        return []
    stages, pooled = hooks.take()
    return [*stages, *([] if pooled is None else [pooled])]
