"""What the optimizer trains and how: the student, the projections of the losses on features, decay and schedule."""

from __future__ import annotations

import os
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from transformers import PreTrainedModel

from .config import GDKDConfig
from .library_errors import StrictTrainer
from .loss_options import as_dict
from .optimizers import timm_optimizer
from .overrides import check_overridden

PROJECTIONS_FILE = "projections.safetensors"


class OptimizationTrainer(StrictTrainer):
    """What GDKDTrainer does for the optimizer: `projections` beside the model, weight decay, learning rate.

    The projections are in the optimizer, the gradient norm and the checkpoints. They are not part of the model, and are
    not saved with it.
    """

    steps_per_epoch = 1  # optimizer steps, of the last training

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_overridden()
        self.projections = nn.ModuleList()
        super().__init__(*args, **kwargs)

    def replace_projections(self, *projections: nn.Module) -> None:
        """Train these in place of the earlier ones, which leave the optimizer."""
        old = {id(p): p for p in self.projections.parameters()}
        self.projections = nn.ModuleList(projections)
        if self.optimizer is not None and old:
            groups = self.optimizer.param_groups
            groups[:] = [group for group in groups if not any(id(p) in old for p in group["params"])]
            for p in old.values():
                self.optimizer.state.pop(p, None)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        decayed = self.get_decay_parameter_names(self.projections)
        for weight_decay, decays in ((self.args.weight_decay, True), (0.0, False)):
            named = [(name, p) for name, p in self.projections.named_parameters() if (name in decayed) == decays]
            if new := [p for _, p in named if id(p) not in known]:
                optimizer.add_param_group({"params": new, "weight_decay": weight_decay})
        return optimizer

    def get_optimizer_cls_and_kwargs(
        self, args: GDKDConfig, model: PreTrainedModel | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As Trainer's, or the optimizer of timm that `timm_optimizer` names, with `optim_args`.

        On a GPU, SGD is the fused one, which `NaNGuard` can have leave out a step.
        """
        if args.timm_optimizer is not None:
            words = [word for word in (args.optim_args or "").replace(" ", "").split(",") if word]
            options = as_dict(words, "optim_args", "max_grad_norm=1.0")
            return timm_optimizer(args.timm_optimizer), {"lr": args.learning_rate, **options}
        optimizer, options = super().get_optimizer_cls_and_kwargs(args, model)
        whole = not self.is_fsdp_enabled and not self.is_deepspeed_enabled
        if optimizer is SGD and args.device.type == "cuda" and whole and not options.get("dampening"):
            options = options | {"fused": True}
        return optimizer, options

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

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> tuple:
        """As Trainer's; the optimizer steps of an epoch are kept, for the ramp."""
        values = super().set_initial_training_values(*args, **kwargs)
        self.steps_per_epoch = values[1]
        return values

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """As Trainer's, or constant but for the steps down at `lr_decay_epochs`."""
        if self.lr_scheduler is None and self.args.lr_decay_epochs:
            milestones = [round(epoch * self.steps_per_epoch) for epoch in self.args.lr_decay_epochs]
            self.lr_scheduler = MultiStepLR(optimizer or self.optimizer, milestones, self.args.lr_decay_rate)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As Trainer's, or with `decay_all_weights` the names of all parameters."""
        if self.args.decay_all_weights:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)
