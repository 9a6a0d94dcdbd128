"""A Trainer whose batches come from DataLoader workers that may die, and that says how long it waits for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_utils import EvalLoopOutput

from ..data.datasets import Augmented
from ..data.views import Views, normalized
from ..errors import InputError, TrainingError
from .dataloader_workers import DataWait, DeadWorker, deaf, describe, heard, worker_arguments
from .optimization import OptimizationTrainer
from .stopped_step import random_state, set_random_state


class LoaderTrainer(OptimizationTrainer):
    """How batches get into the training and the evaluation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_wait = DataWait()
        self.add_callback(self.data_wait)
        # So that the GPU is not waited for: when a batch is copied to it, and when processes tell each other the number
        # of their samples.
        self.accelerator.dataloader_config.non_blocking |= self.args.dataloader_pin_memory
        one_backend = not dist.is_initialized() or dist.get_backend() == "gloo"
        self._cpu_group = None if one_backend else dist.new_group(backend="gloo")

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, int]:
        """The micro-batches of one optimizer step, and the number of their samples over all processes.

        Raises:
            InputError: a batch without `pixel_values`.
            TrainingError: a DataLoader worker of any process died or hung; all processes save the state together.
        """
        if len(self.projections):
            self.projections.zero_grad()  # Trainer's own loop does so for the model
        batches, dead, drawn_from = [], None, random_state(self.args.device)
        try:
            with self.data_wait.waiting(), heard() if self._train_workers else nullcontext():
                batches = list(islice(epoch_iterator, num_batches))
        except DeadWorker as error:
            dead = str(error)
        count = sum(len(pixels_of(batch)) for batch in batches)
        if self.args.world_size > 1:
            dist.all_reduce(tally := torch.tensor([count, dead is not None]), group=self._cpu_group)
            count, deaths = tally.tolist()
            dead = dead or (deaths and "A DataLoader worker of another process died.")
        if dead:
            set_random_state(self.args.device, drawn_from)  # a new epoch's order is drawn again
            self._end(dead, save=True)
        self.note_batches(batches, count, drawn_from)
        return batches, count

    def note_batches(self, batches: list, samples: int, drawn_from: dict[str, Tensor]) -> None:
        """Take the next step's micro-batches, the samples of all processes, and the random state before reading."""

    def evaluated_weights(self) -> AbstractContextManager:
        """Inside, the model has the weights that are evaluated."""
        return nullcontext()

    def save_state(self) -> str:
        """Save a checkpoint because the run ends here; returns its folder."""
        raise NotImplementedError

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's; `data_wait` is the share of the steps' time that was spent waiting for data."""
        if "loss" in logs:
            logs["data_wait"] = self.data_wait.share()
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As Trainer's; it draws none of the training's random numbers.

        A run that resumes from a checkpoint of an epoch's last step does not repeat the evaluation that followed it.

        Raises:
            TrainingError: a DataLoader worker died or hung.
        """
        try:
            with deaf(), heard(), torch.random.fork_rng(devices=[]), self.evaluated_weights():
                return super().evaluation_loop(*args, **kwargs)
        except DeadWorker as error:
            self._end(str(error), save=self.is_in_train and self.args.world_size == 1)

    def get_train_dataloader(self) -> DataLoader:
        """As Trainer's, with workers (`default_workers`) unless the arguments say how many."""
        with worker_arguments(self.args, self.train_dataset, training=True):
            self._train_workers = self.args.dataloader_num_workers
            loader = self._make_train_dataloader()
        if self.is_world_process_zero() and self.args.dataloader_num_workers is None:
            print(describe(self._train_workers))
        return loader

    def _make_train_dataloader(self) -> DataLoader:
        return super().get_train_dataloader()

    def _get_dataloader(self, dataset: Dataset, *args: Any, **kwargs: Any) -> DataLoader:
        """As Trainer's, with workers unless the arguments say how many, and a limit on the time that one may take.

        Images for training are of 8 bits, a quarter of the bytes: `_prepare_inputs` applies mean and std.
        """
        if kwargs.get("is_training") and isinstance(dataset, Augmented):
            dataset = dataset.unnormalized()
        with worker_arguments(self.args, dataset, training=kwargs.get("is_training", False)):
            loader = super()._get_dataloader(dataset, *args, **kwargs)
        if loader.num_workers > 0:
            getattr(loader, "base_dataloader", loader).timeout = self.args.dataloader_timeout
        return loader

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As Trainer's; then images of 8 bits become pixel values, on the device."""
        inputs = super()._prepare_inputs(inputs)
        transform = getattr(self.train_dataset, "transform", None)
        if isinstance(transform, Views):
            inputs = self._prepare_input(normalized(inputs, transform.views))  # in the precision of DeepSpeed
        return inputs

    def _end_workers(self) -> None:
        """Let go of workers that persist for an epoch that will not come."""
        for loader in self.accelerator._dataloaders:
            getattr(loader, "base_dataloader", loader)._iterator = None

    def _end(self, dead: str, *, save: bool) -> NoReturn:
        saved = f" The state after step {self.state.global_step} is in {self.save_state()}." if save else ""
        raise TrainingError(
            f"{dead}{saved} Resume with --resume_from_checkpoint last, and with fewer --dataloader_num_workers if "
            "memory is short."
        )


def pixels_of(batch: Mapping[str, Tensor]) -> Tensor:
    """The student's pixels (N, 3, H, W) in a batch.

    Raises:
        InputError: there are none.
    """
    if not isinstance(batch, Mapping) or "pixel_values" not in batch:
        keys = f"has {', '.join(map(repr, batch)) or 'no keys'}" if isinstance(batch, Mapping) else "is no dictionary"
        raise InputError(
            f"the batch {keys}; expected the images under 'pixel_values' (N, 3, H, W): rename that column, or let the "
            "data set's transform or data_collator make it."
        )
    return batch["pixel_values"]
