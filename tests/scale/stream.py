"""A stream on several processes: `torchrun --nproc_per_node 2 stream.py folder`; each writes what it trained on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import datasets
import torch
from topology import Student
from transformers import PrinterCallback, ViTImageProcessor

from hf_gdkd import GDKDConfig, GDKDTrainer
from hf_gdkd.data.datasets import collate
from hf_gdkd.data.loading import load_data
from hf_gdkd.data.streaming import AugmentedStream
from hf_gdkd.data.views import TrainTransform, View

BATCH, WORKERS = 5, 2


class Recorder(GDKDTrainer):
    def compute_loss(self, model, inputs, **kwargs):
        self.seen.append(inputs["names"].tolist())
        return super().compute_loss(model, inputs | {"labels": inputs["labels"] % 7}, **kwargs)


class Named(TrainTransform):
    def __call__(self, batch):
        return super().__call__(batch) | {"names": batch["labels"]}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    args = GDKDConfig(
        output_dir=str(folder / "run"), loss="ce", max_steps=6, per_device_train_batch_size=BATCH, save_strategy="no",
        report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, dataloader_num_workers=WORKERS,
    )  # fmt: skip
    data = load_data(str(folder / "data"), streaming=True, on_bad_image="skip")
    stream = AugmentedStream(
        data.train, Named(View(ViTImageProcessor(size={"height": 8, "width": 8}))), seed=0, skip_bad_images=True,
        process_index=args.process_index, num_processes=args.world_size,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = Recorder(Student(), None, args, train_dataset=stream, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    trainer.seen = []
    trainer.train()
    result = {"seen": trainer.seen, "bad": stream.bad_images() + data.bad_images, "eval": len(data.eval)}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
