"""Which batches a training run sees: their order and their epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from ..data.streaming import AugmentedStream
from ..errors import InputError
from .checkpoint_trainer import CheckpointTrainer
from .gradient_record import GradientRecord
from .label_maps import StepSize, ignore_index_of

COLUMNS = ("pixel_values", "labels", "label", "label_ids", "sample_id")


class BatchTrainer(CheckpointTrainer):
    """What GDKDTrainer does for the data: order and epochs that a resumed run repeats; and `record_gradients`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._epochs = _Epochs(self)
        self.add_callback(self._epochs)
        self.gradients = GradientRecord() if self.args.record_gradients else None
        if self.gradients is not None:
            self.add_callback(self.gradients)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """As Trainer's, unless the data set has a sampler of its own, as `Augmented` has for repeated augmentation."""
        return getattr(self.train_dataset, "sampler", None) or super()._get_train_sampler(train_dataset)

    def get_batch_samples(self, *args: Any) -> tuple[list, StepSize | int]:
        """As LoaderTrainer's; where labels are maps, the pixels that count take the place of the number of images."""
        batches, images = super().get_batch_samples(*args)
        return batches, self.step_size(batches, images)

    def step_size(self, batches: Sequence[Mapping[str, Any]], images: int) -> StepSize | int:
        """What compute_loss averages over in a step of these micro-batches, of `images` in all processes."""
        return StepSize.of_batches(batches, images, ignore_index_of(self.model), self.accelerator)

    def _make_train_dataloader(self) -> DataLoader:
        """As Trainer's, or a stream's own; its workers are seeded by the epoch, not by training's random numbers."""
        if isinstance(self.train_dataset, AugmentedStream):
            loader = self.train_dataset.loader(self.args, self._train_batch_size, self.data_collator)
        else:
            loader = super()._make_train_dataloader()
        loader.base_dataloader.generator = self._epochs.generator
        return loader

    def _check_data(self) -> None:
        """Refuse training data that would not reach every process.

        Raises:
            InputError: fewer images than processes.
        """
        images = len(self.train_dataset) if has_length(self.train_dataset) else 0
        if 0 < images < self.args.world_size:
            raise InputError(
                f"there are {self.args.world_size} processes and {images} training images: start fewer processes."
            )


class _Epochs(TrainerCallback):
    """Tells the training data the epoch, also where Accelerate does not: on several processes.

    The seed of the loader's workers comes from a generator that starts anew with each epoch. A loader would draw it
    from the training's random numbers, but only when it starts workers; persistent workers start once more in a run
    that is resumed.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.generator = trainer, torch.Generator()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        epoch = int(state.epoch or 0)
        self.generator.manual_seed(args.seed + epoch)
        if hasattr(self.trainer.train_dataset, "set_epoch"):
            self.trainer.train_dataset.set_epoch(epoch)
        if hasattr(self.trainer.train_dataset, "skip_batches"):  # a stream, whose steps are all one epoch
            past = 0 if args.ignore_data_skip else state.global_step * args.gradient_accumulation_steps
            self.trainer.train_dataset.skip_batches(past)
