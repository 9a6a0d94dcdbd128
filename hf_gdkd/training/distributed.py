"""Where the teacher lives under DDP, FSDP2 and DeepSpeed, and what these cannot do here.

The teacher is never wrapped: it has no gradients to average. It stands whole on every device, unless `shard_teacher`
splits it (any engine) or ZeRO-3 does. A split teacher answers only when every process calls it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, StateDictType, fully_shard

from ..errors import InputError
from .config import GDKDConfig
from .teacher import Ensemble, Teacher


def check_engine(accelerator: Accelerator, args: GDKDConfig) -> None:
    """Refuse what an engine would do in another way, or leave undone in the end.

    Raises:
        InputError: FSDP that Accelerate left out; FSDP1; FSDP or ZeRO-3 that would not save the student whole, or keep
            it where it cannot be measured; a moving average, or an optimizer of timm, under FSDP or DeepSpeed.
    """
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    zero = getattr(accelerator.state, "deepspeed_plugin", None)
    if fsdp is None and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise InputError("FSDP was asked for, and on CPUs Accelerate runs DDP in its place: use GPUs, or leave it out.")
    if fsdp is not None:
        if fsdp.fsdp_version == 1:
            raise InputError("FSDP1 is not supported: set fsdp_version: 2, as scripts/accelerate/fsdp2.yaml does.")
        if fsdp.state_dict_type != StateDictType.FULL_STATE_DICT:
            raise InputError(
                f"FSDP's state_dict_type {fsdp.state_dict_type.name} leaves no model.safetensors of the student: set "
                "FULL_STATE_DICT, as scripts/accelerate/fsdp2.yaml does."
            )
        if isinstance(fsdp.cpu_offload, CPUOffloadPolicy):
            raise InputError("fsdp_offload_params keeps the student from being measured in the end: leave it out.")
    gather = "zero_optimization.stage3_gather_16bit_weights_on_model_save"
    if zero is not None and zero.zero_stage == 3 and not zero.get_value(gather):
        raise InputError(
            "ZeRO-3 would leave no model.safetensors of the student: set zero3_save_16bit_model to true, as "
            f"scripts/accelerate/deepspeed_zero3.yaml does, or {gather} in a config of DeepSpeed's own."
        )
    if args.timm_optimizer is not None and (fsdp or zero):
        raise InputError("timm_optimizer needs whole tensors on each device: leave it out, or train with DDP.")
    if args.ema_decay is not None and (fsdp or zero):
        raise InputError("ema_decay needs the student's whole weights on each device: leave it out, or train with DDP.")


def name_blocks(accelerator: Accelerator, student: nn.Module) -> None:
    """Let FSDP2 split the student as a teacher is split, unless the user named blocks.

    Accelerate was made for language models. It splits the input's embedding by itself, which is a part of a block
    that Transformers names for a ViT, and which a convolutional network does not have.
    """
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    if fsdp is None:
        return
    if fsdp.transformer_cls_names_to_wrap is None:
        fsdp.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in _blocks(student)})
    try:
        student.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        student.get_input_embeddings = lambda: None


def place_teacher(teacher: Teacher | Ensemble, args: GDKDConfig) -> Teacher | Ensemble:
    """The teacher on the run's device, whole or split; a second call changes nothing.

    On a GPU the weights of a convolutional teacher that is whole are laid out channels last, as cuDNN's fast kernels
    want them.

    Raises:
        InputError: it does not fit, or there is one process to split it over.
    """
    zero = args.deepspeed_plugin
    for each in teacher.teachers if isinstance(teacher, Ensemble) else [teacher]:
        if not isinstance(each, Teacher):  # one that reads a cache, and places itself if it is needed
            continue
        if zero is not None and zero.hf_ds_config.is_zero3():
            _partition(each.model)
        elif args.shard_teacher:
            _shard(each.model, args.device)
        elif args.device.type == "cuda" and convolves(each.model):
            each.model.to(memory_format=torch.channels_last)
    return teacher.to(args.device)


def convolves(model: nn.Module) -> bool:
    """Whether a model has convolutions over overlapping places: a patch embedding has not, nor one of size 1."""
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return any(
        size > stride for each in convolutions for size, stride in zip(each.kernel_size, each.stride, strict=True)
    )


def _shard(model: nn.Module, device: torch.device) -> None:
    """Split the weights over all processes; a block's are gathered while it runs."""
    if not distributed.is_initialized():
        raise InputError("shard_teacher splits the teacher over several processes, and there is one: leave it out.")
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for module in (*_blocks(model), model):
        if not isinstance(module, FSDPModule):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The members of a model's outermost lists of modules, those that have parts."""
    for child in model.children():
        if isinstance(model, nn.ModuleList | nn.Sequential) and not isinstance(child, nn.ModuleList):
            if any(child.children()):
                yield child
        else:
            yield from _blocks(child)


def _partition(model: nn.Module) -> None:
    """Split the weights as ZeRO-3 does: an engine of stage 3 without an optimizer, in the teacher's own precision."""
    import deepspeed

    if hasattr(model, "ds_inflight_param_registry"):
        return
    dtype = next(model.parameters()).dtype
    config = {
        "train_micro_batch_size_per_gpu": 1,  # has to be given; an engine without an optimizer does not use it
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
    }
    deepspeed.zero.Init(module=model, config_dict_or_path=config)
    deepspeed.initialize(model=model, config=config)
