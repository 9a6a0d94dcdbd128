"""Runs of the topology tests on CPU processes: `torchrun --nproc_per_node 2 topology.py jobs.json` writes each run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import PrinterCallback, ViTImageProcessor

from hf_gdkd import GDKDConfig, GDKDTrainer, Teacher
from hf_gdkd.data import Augmented, TrainTransform, View, collate
from hf_gdkd.data.augment import Mix
from hf_gdkd.data.teacher_cache import TeacherCache
from hf_gdkd.training.cached_teacher import CachedTeacher

CLASSES, SIZE, LEARNING_RATE = 7, 8, 0.5


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 6, 2, 2)
        self.body, self.head = nn.Linear(6 * (SIZE // 2) ** 2, 32), nn.Linear(32, CLASSES)

    def forward(self, pixel_values):
        return self.head(torch.tanh(self.body(self.maps(pixel_values).flatten(1))))


class Segmenter(nn.Module):
    """Logits of maps at a part of the resolution of the image."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, CLASSES, 3, stride, 1)

    def forward(self, pixel_values):
        return 2 * torch.tanh(self.head(pixel_values))


def scenes(indices: list[int]) -> list[dict[str, torch.Tensor]]:
    """Images of which from none to all pixels have a label."""
    g = torch.Generator().manual_seed(0)
    shape = max(indices) + 1, SIZE, SIZE
    pixels, labels = torch.randn(shape[0], 3, SIZE, SIZE, generator=g), torch.randint(CLASSES, shape, generator=g)
    share = torch.rand(shape[0], 1, 1, generator=g)
    share[::5] = 1
    labels[torch.rand(shape, generator=g) < share] = 255
    return [{"pixel_values": pixels[i], "labels": labels[i]} for i in indices]


def samples(indices: list[int]) -> list[dict[str, torch.Tensor | int]]:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randn(max(indices) + 1, 3, SIZE, SIZE, generator=g)
    return [{"pixel_values": pixels[i], "labels": i % CLASSES} for i in indices]


def mixed_views(rows: int, cache: TeacherCache | None) -> Augmented:
    """Images with one view each, a mixture of two; with the teacher's logits where there is a cache."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (rows, SIZE, SIZE, 3), dtype=torch.uint8, generator=g).numpy()
    images = [{"image": Image.fromarray(p), "labels": i % CLASSES} for i, p in enumerate(pixels)]
    view = View(ViTImageProcessor(size={"height": SIZE, "width": SIZE}))
    return Augmented(
        images, TrainTransform(view, {"teacher_pixel_values": view}, crop_scale=0.5), seed=1, views=1,
        mix=Mix(CLASSES, (SIZE, SIZE), mixup_alpha=0.4, cutmix_alpha=1.0),
        caches={} if cache is None else {"teacher_pixel_values": cache},
    )  # fmt: skip


def run(
    folder: Path,
    name: str,
    indices: list[int],
    mixed: bool = False,
    cache: str | None = None,
    maps: bool = False,
    **options,
) -> None:
    """Train once, and write weights and log; on `mixed` views, whose teacher may be read from a cache, or on `maps`."""
    torch.manual_seed(0)
    student, teacher = Student(), Student()
    data, shared = samples(indices), {}
    if maps:
        student, teacher, data = Segmenter(), Segmenter(1), scenes(indices)
    if mixed:
        stored = cache and TeacherCache(
            folder / cache, {}, rows=len(indices), classes=CLASSES, views=1, dtype="float32"
        )
        data, shared = mixed_views(len(indices), stored or None), {"data_collator": collate}
        live = Teacher(teacher)
        teacher = CachedTeacher(stored, lambda: live) if stored else live
    args = GDKDConfig(
        output_dir=str(folder / name), max_steps=5, learning_rate=LEARNING_RATE, lr_scheduler_type="constant",
        optim="sgd", max_grad_norm=0, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=True, dataloader_pin_memory=False, train_sampling_strategy="sequential", label_smoothing_factor=0.1,
        class_weights=[0.5 + i / 4 for i in range(CLASSES)], **options,
    )  # fmt: skip
    trainer = GDKDTrainer(student, teacher, args, train_dataset=data, **shared)
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
