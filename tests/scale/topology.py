"""Runs of the topology tests on CPU processes: `torchrun --nproc_per_node 2 topology.py jobs.json` writes each run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PrinterCallback

from hf_gdkd import GDKDConfig, GDKDTrainer

CLASSES, SIZE, LEARNING_RATE = 7, 8, 0.5


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 6, 2, 2)
        self.body, self.head = nn.Linear(6 * (SIZE // 2) ** 2, 32), nn.Linear(32, CLASSES)

    def forward(self, pixel_values):
        return self.head(torch.tanh(self.body(self.maps(pixel_values).flatten(1))))


def samples(indices: list[int]) -> list[dict[str, torch.Tensor | int]]:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randn(max(indices) + 1, 3, SIZE, SIZE, generator=g)
    return [{"pixel_values": pixels[i], "labels": i % CLASSES} for i in indices]


def run(folder: Path, name: str, indices: list[int], **options) -> None:
    """Train once and write the weights and the log."""
    torch.manual_seed(0)
    student, teacher = Student(), Student()
    args = GDKDConfig(
        output_dir=str(folder / name), max_steps=5, learning_rate=LEARNING_RATE, lr_scheduler_type="constant",
        optim="sgd", max_grad_norm=0, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=True, dataloader_pin_memory=False, train_sampling_strategy="sequential", label_smoothing_factor=0.1,
        class_weights=[0.5 + i / 4 for i in range(CLASSES)], **options,
    )  # fmt: skip
    trainer = GDKDTrainer(student, teacher, args, train_dataset=samples(indices))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if trainer.is_world_process_zero():
        rows = [row for row in trainer.state.log_history if "loss" in row]
        (folder / f"{name}.json").write_text(json.dumps(rows))
        save_file(dict(student.state_dict()), folder / f"{name}.safetensors")


if __name__ == "__main__":
    jobs = Path(sys.argv[1])
    for job in json.loads(jobs.read_text()):
        run(jobs.parent, **job)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may still abort the interpreter's own end, after all is written
