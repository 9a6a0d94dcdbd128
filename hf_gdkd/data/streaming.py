"""Training data that is read as it comes and never held as a whole, split over processes and workers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import datasets
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import TrainingArguments

from ..errors import InputError
from .datasets import draw_seed
from .decoding import ImageError, open_image


class AugmentedStream(IterableDataset):
    """Augmented samples of a streamed data set, without end: pass after pass, each in an order of its own.

    In a pass, all processes and workers together see every row once. A process takes whole shards where their number
    is a multiple of the number of processes; otherwise it reads all shards, and opens its share of their images. A
    worker takes whole shards always. The samples depend on seed, pass, process, worker and position alone, so that a
    resumed run, which reads again up to where it stopped, goes on with the same.

    Args:
        rows: stream with an undecoded `image` and, if labelled, `labels`, a ClassLabel.
        transform: of a batch with decoded images, as TrainTransform.
        seed: of the order and of all random numbers.
        skip_bad_images: pass over images that cannot be read; `bad_images` counts them.
        process_index, num_processes: which of how many processes this is.

    Raises:
        InputError: an image that cannot be read, with its position, unless it is passed over; none that can be read;
            a label that is no class.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        transform: Callable[[dict[str, list]], dict[str, object]],
        *,
        seed: int,
        skip_bad_images: bool = False,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.rows, self.transform, self.seed, self.skip_bad_images = rows, transform, seed, skip_bad_images
        self.process_index, self.num_processes = process_index, num_processes
        self.num_labels = rows.features["labels"].num_classes if "labels" in rows.features else None
        self._bad = torch.zeros(256, dtype=torch.int64).share_memory_()  # by worker

    def bad_images(self) -> int:
        """Images that could not be read, as far as the first pass went, of all processes; all must ask together."""
        return sum(gather_object([int(self._bad.sum())]))

    def loader(self, args: TrainingArguments, batch_size: int, collate: Callable) -> DataLoader:
        """What Trainer iterates over; unlike its own it does not split the stream, which is split already."""
        workers = args.dataloader_num_workers
        loader = DataLoader(
            self,
            batch_size,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            timeout=args.dataloader_timeout if workers else 0,
        )
        alone = {"num_processes": 1, "process_index": 0, "dispatch_batches": False}
        return prepare_data_loader(loader, args.device, put_on_device=True, **alone)

    def __iter__(self) -> Iterator[dict[str, object]]:
        for number in itertools.count():
            sample = None
            for sample in self.one_pass(number):
                yield sample
            if sample is None:  # a worker without a shard
                return

    def one_pass(self, number: int) -> Iterator[dict[str, object]]:
        """This worker's share of a pass over the data."""
        worker = getattr(get_worker_info(), "id", 0)
        rows = self.rows.shuffle(draw_seed(self.seed, number))
        bad = seen = 0
        for position, row in enumerate(split_dataset_by_node(rows, self.process_index, self.num_processes)):
            try:
                sample = self._open(row, f"image {position} of process {self.process_index}, worker {worker}")
            except ImageError:
                if not self.skip_bad_images:
                    raise
                bad += 1
                if number == 0:
                    self._bad[worker] = bad
                continue
            seen += 1
            with torch.random.fork_rng(devices=[]):
                seed = draw_seed(self.seed, number, self.process_index, worker, position)
                torch.random.default_generator.manual_seed(seed)
                batch = self.transform({name: [value] for name, value in sample.items()})
            yield {name: values[0] for name, values in batch.items()}
        if bad and not seen:
            raise InputError(f"not one of the {bad} images of worker {worker} can be read: check the files.")

    def _open(self, row: Mapping[str, Any], what: str) -> dict[str, Any]:
        sample = {**row, "image": open_image(row["image"], what)}
        if self.num_labels is not None and row["labels"] not in range(self.num_labels):
            raise InputError(
                f"{what} has the label {row['labels']}, outside 0 to {self.num_labels - 1}: choose a labelled split or "
                "mend the labels."
            )
        return sample
