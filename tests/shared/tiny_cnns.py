"""Tiny convolutional students and teachers with stages, and trainers that distil their features."""

from __future__ import annotations

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from hf_gdkd import GDKDConfig, GDKDTrainer

CLASSES, SIZE, SAMPLES = 5, 8, 20


class CNN(nn.Module):
    """Three stages, without batch normalisation; counts its forward passes."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.Tanh())
        self.stage2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, padding=1), nn.Tanh())
        self.stage3 = nn.Sequential(nn.Conv2d(2 * width, 3 * width, 3, 2, padding=1), nn.Tanh())
        self.head = nn.Linear(3 * width, CLASSES)
        self.calls = 0

    def stages(self, x):
        maps = [self.stage1(x)]
        maps.append(self.stage2(maps[-1]))
        return [*maps, self.stage3(maps[-1])]

    def forward(self, pixel_values):
        self.calls += 1
        return self.head(self.stages(pixel_values)[-1].mean((2, 3)))


class BigCNN(CNN):
    def __init__(self) -> None:
        super().__init__(width=6)


def vit():
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, image_size=SIZE,
        patch_size=2, num_labels=CLASSES,
    )  # fmt: skip
    return ViTForImageClassification(config)


def make(build, seed=0):
    torch.manual_seed(seed)
    return build()


def make_data(samples=SAMPLES):
    g = torch.Generator().manual_seed(5)
    pixels = torch.randn(samples, 3, SIZE, SIZE, generator=g)
    return [{"pixel_values": x, "labels": i % CLASSES} for i, x in enumerate(pixels)]


class InOrder(GDKDTrainer):
    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def config(folder, loss, **options):
    defaults = {
        "output_dir": str(folder), "per_device_train_batch_size": 8, "num_train_epochs": 1, "optim": "sgd",
        "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 3,
    }  # fmt: skip
    return GDKDConfig(loss=loss, **(defaults | options))


def distil(folder, loss, student=CNN, teacher=BigCNN, *, callbacks=None, resume=None, **options):
    trainer = InOrder(
        make(student), make(teacher, 1), config(folder, loss, **options), train_dataset=make_data(),
        eval_dataset=make_data(6), callbacks=callbacks,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer):
    models = (trainer.model, trainer.projections)
    return torch.cat([p.detach().flatten() for model in models for p in model.parameters()])
