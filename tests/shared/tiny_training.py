"""Tiny students, a tiny teacher and data for them, and a trainer that has trained: what the tests of training share."""

import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
)

from hf_gdkd import GDKDConfig, GDKDTrainer

CLASSES, SIZE, SAMPLES = 7, 8, 31  # 31 = 12 + 12 + 7, and 7 = 3 + 3 + 1


class Plain(nn.Module):
    """A student that is no transformers model, and whose forward knows no labels."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.head = nn.Linear(3 * SIZE * SIZE, classes)

    def forward(self, x):
        return self.head(x.flatten(1))


def vit(classes=CLASSES):
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIZE,
        patch_size=4,
        num_labels=classes,
    )
    return ViTForImageClassification(config)


def convnext(classes=CLASSES):
    config = ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], patch_size=2, num_labels=classes)
    return ConvNextForImageClassification(config)


class NormedTeacher(nn.Module):
    """A teacher with BatchNorm and dropout, that counts its forward passes."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Linear(3 * SIZE * SIZE, classes)
        self.calls = 0

    def forward(self, pixel_values):
        self.calls += 1
        return 3 * self.head(self.drop(self.norm(pixel_values).flatten(1)))


STUDENTS = {"vit": vit, "convnext": convnext, "plain": Plain}


def make(build, seed=0):
    torch.manual_seed(seed)
    return build()


def make_data(samples=SAMPLES, soft=False, seed=5):
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randn(samples, 3, SIZE, SIZE, generator=g)
    labels = torch.randint(CLASSES, (samples,), generator=g)
    if soft:
        labels = torch.randn(samples, CLASSES, generator=g).softmax(-1)
    return [{"pixel_values": p, "labels": y} for p, y in zip(pixels, labels, strict=True)]


class InOrder(GDKDTrainer):
    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def config(folder, loss="gdkd", **options):
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 12,
        "per_device_eval_batch_size": 5,
        "num_train_epochs": 1,
        "optim": "sgd",
        "learning_rate": 0.3,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return GDKDConfig(loss=loss, **(defaults | options))


def distil(folder, student=None, *, teacher="default", data=None, trainer=InOrder, resume=None, callbacks=None, **kw):
    """A trainer that has trained."""
    args = config(folder, **kw)
    if isinstance(teacher, str) and teacher == "default":
        teacher = None if args.loss == "ce" else make(NormedTeacher, 1)
    trainer = trainer(
        student if student is not None else make(Plain), teacher, args, train_dataset=data or make_data(),
        eval_dataset=make_data(11), callbacks=callbacks,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def rows(trainer):
    """What was logged in training, but for the time that was waited for data."""
    logged = [row for row in trainer.state.log_history if "loss" in row]
    return [{name: value for name, value in row.items() if name != "data_wait"} for row in logged]


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.body = nn.BatchNorm2d(3), Plain()

    def forward(self, x):
        return self.body(self.norm(x))


class Record(TrainerCallback):
    """The student's raw weights after every step, and what stands in the model while it is evaluated."""

    def __init__(self):
        self.steps, self.evaluated = [], []

    def state(self, model):
        return {name: t.clone() for name, t in model.state_dict().items()}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.steps.append(self.state(model))

    def on_prediction_step(self, args, state, control, model=None, **kwargs):
        self.evaluated.append(self.state(model))
