"""Training data that is read while it is used and never held in full, split over processes and workers."""

from __future__ import annotations

import copy
import itertools
import logging
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
from .decoding import ImageError
from .opened import Picture
from .selection import ROW
from .views import Views

logger = logging.getLogger(__name__)

SHUFFLE_BUFFER = 10_000  # undecoded images, of all workers of a process together
SHARDS_AT_ONCE = 64  # that feed the buffer, likewise


class AugmentedStream(IterableDataset):
    """Augmented samples of a streamed data set, without end: pass after pass, each in another order.

    In a pass, all processes and workers together see every row once. A process takes whole shards where their number
    is a multiple of the number of processes; otherwise it reads all shards, and opens its share of their images. A
    worker always takes whole shards. Shards are shuffled and up to 64 read in turns, into a buffer that rows are drawn
    from at random. The samples depend on seed, pass, process, worker and position alone, so that a resumed run, which
    reads again up to where it stopped, goes on with the same; what it passes over (`skip_batches`) is neither decoded
    nor augmented again, except that with `skip_bad_images` it must be decoded to be counted.

    Args:
        rows: stream with an undecoded `image` and, if labelled, `labels`, a ClassLabel.
        transform: of a batch with decoded images, as TrainTransform.
        seed: of the order and of all random numbers.
        shuffle_buffer: undecoded images that a process holds to draw from, divided among its workers.
        skip_bad_images: pass over images that cannot be read; `bad_images` counts them.
        process_index, num_processes: which of how many processes this is.

    Raises:
        InputError: an image that cannot be read, with its row if known or its position, unless it is passed over;
            none that can be read; a label that is no class.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        transform: Callable[[dict[str, list]], dict[str, object]],
        *,
        seed: int,
        shuffle_buffer: int = SHUFFLE_BUFFER,
        skip_bad_images: bool = False,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        if rows.num_shards < SHARDS_AT_ONCE:
            rows = rows.reshard()  # parquet: by row group
        self.rows, self.transform, self.seed, self.skip_bad_images = rows, transform, seed, skip_bad_images
        self.shuffle_buffer, self._batch_size = shuffle_buffer, 1
        self.process_index, self.num_processes = process_index, num_processes
        self.num_labels = rows.features["labels"].num_classes if "labels" in rows.features else None
        self._skipped_batches = torch.zeros((), dtype=torch.int64)
        self._bad = torch.zeros(256, dtype=torch.int64).share_memory_()  # by worker

    def bad_images(self) -> int:
        """Images that could not be read, as far as the first pass went, of all processes; all must ask together."""
        return sum(gather_object([int(self._bad.sum())]))

    def loader(self, args: TrainingArguments, batch_size: int, collate: Callable) -> DataLoader:
        """What Trainer iterates over; unlike its own it does not split the stream, which is split already."""
        shards, processes = self.rows.num_shards, self.num_processes
        shards = shards if shards % processes else shards // processes
        workers = min(args.dataloader_num_workers, shards)  # a worker without a shard has nothing to do
        stream = copy.copy(self)
        stream._batch_size = batch_size
        if isinstance(self.transform, Views):  # mean and std are applied on the device
            stream.transform = self.transform.unnormalized()
        loader = DataLoader(
            stream,
            batch_size,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            timeout=args.dataloader_timeout if workers else 0,
        )
        alone = {"num_processes": 1, "process_index": 0, "dispatch_batches": False}
        waits_not = {"put_on_device": True, "non_blocking": args.dataloader_pin_memory}
        return prepare_data_loader(loader, args.device, **waits_not, **alone)

    def skip_batches(self, batches: int) -> None:
        """Let the loader's next iteration begin with so many batches of nothing, in the place of those trained on."""
        self._skipped_batches.fill_(batches)

    def __iter__(self) -> Iterator[dict[str, object]]:
        worker = get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        skip = len(range(index, int(self._skipped_batches), workers)) * self._batch_size
        for number in itertools.count():
            seen = 0
            for sample in self.one_pass(number, skip):
                seen += 1
                yield sample
            skip = max(skip - seen, 0)
            if not seen:  # a worker without a shard
                return

    def one_pass(self, number: int, skip: int = 0) -> Iterator[dict[str, object]]:
        """This worker's share of a pass over the data; in the place of the first `skip` samples, empty ones."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        rows = self.rows.shuffle(
            draw_seed(self.seed, number),
            buffer_size=max(self.shuffle_buffer // workers, 1),
            max_buffer_input_shards=max(SHARDS_AT_ONCE // workers, 8),
        )
        bad = seen = 0
        labels = [] if number == worker == self.process_index == 0 else None
        for position, row in enumerate(split_dataset_by_node(rows, self.process_index, self.num_processes)):
            if labels is not None and len(labels) < self._batch_size:
                labels.append(row.get("labels"))
                self._check_variety(labels)
            if seen < skip and not self.skip_bad_images:
                seen += 1
                yield {ROW: 0}
                continue
            place = f"image {position} of process {self.process_index}, worker {worker}"
            try:
                sample = self._open(row, f"image in row {row[ROW]}" if ROW in row else place)
                if seen < skip:  # it counts if it can be read
                    sample["image"].decoded() if isinstance(sample["image"], Picture) else None
                    made = {ROW: 0}
                else:
                    made = self._made(sample, draw_seed(self.seed, number, self.process_index, worker, position))
            except ImageError:
                if not self.skip_bad_images:
                    raise
                bad += 1
                if number == 0:
                    self._bad[worker] = bad
                continue
            seen += 1
            yield made
        if bad and not seen:
            raise InputError(f"none of the {bad} images of worker {worker} can be read: check the files.")

    def _made(self, sample: Mapping[str, Any], seed: int) -> dict[str, object]:
        """What the transform makes of one sample with this seed."""
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            batch = self.transform({name: [value] for name, value in sample.items()})
        return {name: values[0] for name, values in batch.items()}

    def _check_variety(self, labels: list[int]) -> None:
        """Warn of a first batch with less than half as many classes as chance would give it."""
        classes, size = self.num_labels or 0, len(labels)
        if classes > 1 and size == self._batch_size:
            expected = classes * (1 - (1 - 1 / classes) ** size)
            if len(set(labels)) < expected / 2:
                logger.warning(
                    f"The first batch of {size} images holds {len(set(labels))} of {classes} classes, where about "
                    f"{expected:.0f} were expected: the data set seems to be sorted. Use a larger --shuffle_buffer (it "
                    f"is {self.shuffle_buffer}), shuffle the data set, or leave --streaming out."
                )

    def _open(self, row: Mapping[str, Any], what: str) -> dict[str, Any]:
        picture = Picture(row["image"], what)
        sample = {**row, "image": picture if isinstance(self.transform, Views) else picture.decoded()}
        if self.num_labels is not None and row["labels"] not in range(self.num_labels):
            raise InputError(
                f"{what} has the label {row['labels']}, outside 0 to {self.num_labels - 1}: choose a labelled split or "
                "correct the labels."
            )
        return sample
