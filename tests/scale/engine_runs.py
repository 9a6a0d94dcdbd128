"""Runs of the engine tests on two CPU processes: `torchrun --nproc_per_node 2 engine_runs.py folder engine`.

Accelerate gives FSDP2 to accelerators alone; here its state is told that two gloo processes are such.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from accelerate import DistributedType, PartialState
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    PrinterCallback,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_gdkd import GDKDConfig, GDKDTrainer
from hf_gdkd.errors import InputError, TrainingError
from hf_gdkd.models.loading import load_model
from hf_gdkd.training.distributed import place_teacher
from hf_gdkd.training.teacher import Ensemble, Teacher

CLASSES, SIZE = 7, 32
FSDP2 = {"fsdp": True}
TWO_MICRO_BATCHES = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}


class Plain(nn.Module):
    """A model without blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * SIZE * SIZE, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(pixel_values.flatten(1))


def vit(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=SIZE, patch_size=SIZE // 2, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = ViTForImageClassification(config).float()
    model.classifier.weight.data *= 50  # so that it is sure of something
    return model


def samples(count: int, bad: int | None = None) -> list[dict[str, Tensor | int]]:
    g = torch.Generator().manual_seed(0)
    rows = [{"pixel_values": torch.randn(3, SIZE, SIZE, generator=g), "labels": i % CLASSES} for i in range(count)]
    if bad is not None:
        rows[bad]["pixel_values"][:] = torch.nan
    return rows


def train(
    folder: Path,
    *,
    student: nn.Module | None = None,
    data: int = 64,
    bad: int | None = None,
    resume: str | None = None,
    **options: object,
) -> GDKDTrainer:
    """Four steps of 32 samples in two epochs, evaluated and saved after each; AdamW that minds a gradient's scale."""
    options = {"per_device_train_batch_size": 32 // int(os.environ.get("WORLD_SIZE", "1")), **options}
    args = GDKDConfig(
        output_dir=str(folder), max_steps=4, learning_rate=0.03, adam_epsilon=1.0, lr_scheduler_type="constant",
        logging_steps=1, eval_strategy="epoch", save_strategy="epoch", report_to="none", disable_tqdm=True,
        use_cpu=True, dataloader_pin_memory=False, train_sampling_strategy="sequential", loss="gdkd3", k=3,
        max_grad_norm=200.0,
        **options,
    )  # fmt: skip
    rows = samples(data, bad)
    trainer = GDKDTrainer(student or vit(0), vit(1), args, train_dataset=rows, eval_dataset=rows[:16])
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    return trainer


def share(model: nn.Module) -> float:
    """The part of a model's weights that this process holds."""
    held = [getattr(p, "ds_tensor", p.to_local() if isinstance(p, DTensor) else p) for p in model.parameters()]
    return sum(p.numel() for p in held) / sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())


@contextmanager
def fsdp_on_cpu() -> Iterator[None]:
    original = PartialState.__init__

    def init(state: PartialState, *args: object, **kwargs: object) -> None:
        original(state, *args, **kwargs)
        if state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_GPU

    with mock.patch.object(PartialState, "__init__", init), mock.patch.dict(os.environ):
        yield


def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    small = {"num_labels": CLASSES}
    swin = SwinConfig(image_size=SIZE, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4, **small)
    timm = TimmWrapperConfig(architecture="resnet10t", **small)
    return {
        "vit": vit(0),
        "swin": SwinForImageClassification(swin),
        "convnext": ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4, **small)),
        "resnet": ResNetForImageClassification(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 2], **small)
        ),
        "timm": TimmWrapperForImageClassification(timm),
        "no lists": Plain(),
    }


def split_answers() -> dict[str, tuple[float, float, int]]:
    """By architecture: how far a split teacher's logits are from the whole one's, the part held then, its parts."""
    teachers = {name: Teacher(model) for name, model in models().items()}
    teachers["ensemble"] = Ensemble([Teacher(vit(seed)) for seed in (1, 2)])
    args = GDKDConfig(use_cpu=True, report_to="none", shard_teacher=True)
    batch = {"pixel_values": torch.randn(3, 3, SIZE, SIZE)}
    answers = {}
    for name, teacher in teachers.items():
        whole = teacher(batch)
        teacher = place_teacher(place_teacher(teacher, args), args)
        parts = nn.ModuleList(each.model for each in getattr(teacher, "teachers", [teacher]))
        difference = (teacher(batch) - whole).abs().max().item()
        answers[name] = difference, share(parts), sum(isinstance(m, FSDPModule) for m in parts.modules())
    return answers


def loaded_whole(folder: Path, **options: object) -> list[bool]:
    """By process: whether a student without a head on disk, loaded after the arguments, has all its weights."""
    expected = vit(1)
    if os.environ["RANK"] == "0":
        expected.vit.save_pretrained(folder / "body")
    args = GDKDConfig(output_dir=str(folder), use_cpu=True, report_to="none", **options)
    distributed.barrier()
    loaded = load_model(str(folder / "body")).state_dict()
    mine = all(
        loaded[name].shape == t.shape and loaded[name].device == t.device for name, t in expected.state_dict().items()
    )
    found = [False] * args.world_size
    distributed.all_gather_object(found, mine)
    return found


def refusals(folder: Path) -> dict[str, str]:
    """What is refused, by what it is."""
    cases = {
        "split batches": {"accelerator_config": {"split_batches": True}, "per_device_train_batch_size": 9},
        "more processes than samples": {"data": 1},
        "FSDP on CPUs": FSDP2,
    }
    gated = {
        "FSDP1": {"fsdp": True, "fsdp_config": {"version": 1, "sync_module_states": False}},
        "sharded state": {"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}},
        "offload": {"fsdp": True, "fsdp_config": {"cpu_offload": True}},
        "EMA": {**FSDP2, "ema_decay": 0.9},
    }
    said = {}
    for name, options in (cases | gated).items():
        with fsdp_on_cpu() if name in gated else mock.patch.dict(os.environ):
            try:
                train(folder / "refused", **options)
            except InputError as error:
                said[name] = str(error)
    return said


def interrupted(folder: Path, logging: str = "steps", **options: object) -> str:
    """Why a run with a spoiled image in its second step ended; the run that goes on from there is `folder`."""
    spoiled = folder.with_name(f"{folder.name}_spoiled")
    try:
        train(spoiled, bad=40, logging_strategy=logging, **options)
    except TrainingError as error:
        train(folder, resume=str(spoiled / "checkpoint-1"), **options)
        return str(error)
    return "not at all"


def torch_engines(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {"answers": split_answers()}
    train(folder / "ddp", **TWO_MICRO_BATCHES)
    found["ended"] = {"ddp": interrupted(folder / "ddp_mended", "no", **TWO_MICRO_BATCHES)}  # no log looks at it
    found["share"] = {"ddp_split": share(train(folder / "ddp_split", shard_teacher=True).teacher.model)}
    with fsdp_on_cpu():
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        found["whole"] = loaded_whole(folder, fsdp=True, fsdp_config={"cpu_ram_efficient_loading": True})
        trainer = train(folder / "fsdp2", **TWO_MICRO_BATCHES, **FSDP2)
        found["share"] |= {"fsdp2": share(trainer.teacher.model), "fsdp2_student": share(trainer.model)}
        train(folder / "fsdp2_split", shard_teacher=True, **FSDP2)
        train(folder / "fsdp2_resumed", resume=str(folder / "fsdp2_split/checkpoint-2"), **FSDP2)
        found["students"] = {
            name: share(train(folder / f"student_{name}", student=model, **FSDP2).model)
            for name, model in models().items()
        }
        found["ended"]["fsdp2"] = interrupted(folder / "fsdp2_mended", **TWO_MICRO_BATCHES, **FSDP2)
    found["refused"] = refusals(folder)
    return found


def deepspeed_engines(folder: Path) -> dict[str, object]:
    zero = {"stage3_gather_16bit_weights_on_model_save": True}
    config = {"zero_optimization": zero, "zero_allow_untested_optimizer": True, "gradient_clipping": "auto"}
    config |= {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    options = {"deepspeed": config, **TWO_MICRO_BATCHES}
    found: dict[str, object] = {"share": {}, "ended": {}, "refused": {}}
    found["whole"] = loaded_whole(folder, deepspeed={**config, "zero_optimization": {"stage": 3}})
    for stage in (2, 3):
        zero["stage"] = stage
        run = f"zero{stage}"
        found["share"][run] = share(train(folder / run, **options).teacher.model)
        train(folder / f"{run}_resumed", resume=str(folder / run / "checkpoint-2"), **options)
        found["ended"][run] = interrupted(folder / f"{run}_mended", **options)
    for name, gather, more in (("EMA", True, {"ema_decay": 0.9}), ("a student in parts", False, {})):
        zero["stage3_gather_16bit_weights_on_model_save"] = gather
        try:
            train(folder / "refused", **options, **more)
        except InputError as error:
            found["refused"][name] = str(error)
    return found


if __name__ == "__main__":
    folder, engine = Path(sys.argv[1]), sys.argv[2]
    found = {"torch": torch_engines, "deepspeed": deepspeed_engines}[engine](folder)
    if os.environ["RANK"] == "0":
        (folder / "found.json").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
