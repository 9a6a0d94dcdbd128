"""The model card: its metadata and its text, from the template and what the run measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from transformers import PreTrainedConfig
from yaml import YAMLError

from ..data.loading import Data
from ..hub_client import HUB_ERRORS
from ..losses import loss_options
from ..models.cifar.configuration import CifarConfig
from ..models.names import resolve_name
from ..training.config import GDKDConfig

WEIGHTS = ("w0", "w1", "w2", "alpha", "beta", "gamma", "distance_weight", "angle_weight")
PACKAGES = ("hf_gdkd", "torch", "transformers", "datasets", "timm")


@dataclass
class Origin:
    """What a student was made from: names as the user wrote them, commits where they are on the Hub."""

    student: str
    pretrained: bool  # whether it started from the student's weights
    teachers: Sequence[tuple[str, str | None]]  # name and commit
    student_revision: str | None = None
    dataset_revision: str | None = None
    license: str | None = None  # None: that of the student it started from
    command: str = ""  # what started the run


def write_card(folder: str, origin: Origin, args: GDKDConfig, data: Data, metrics: Mapping[str, Any]) -> None:
    """Write README.md, the card of the student in `folder`."""
    name = Path(folder).resolve().name
    student, teachers = resolve_name(origin.student), [resolve_name(teacher) for teacher, _ in origin.teachers]
    started_from_hub = origin.pretrained and not Path(student).is_dir()
    local = data.name == "digits" or Path(data.name).is_dir()
    dataset = "scikit-learn digits" if data.name == "digits" else Path(data.name).name if local else data.name
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset.lower().replace(" ", "-") if local else data.name,
            dataset_name=dataset,
            dataset_split=data.eval_split,
            metric_type="accuracy",
            metric_name=name,
            metric_value=metrics[key],
        )
        for key, name in (("top1", "top-1 accuracy"), ("top5", "top-5 accuracy"))
        if key in metrics
    ]
    card_data = ModelCardData(
        model_name=name,
        license=origin.license or (license_of(student, origin.student_revision) if started_from_hub else None),
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", "knowledge-distillation", "gdkd", *(f"teacher:{name}" for name in teachers)]
        if teachers
        else ["image-classification"],
        base_model=student if started_from_hub else None,
        base_model_relation="finetune" if started_from_hub else None,
        teacher_model=teachers[0] if len(teachers) == 1 else teachers or None,
        datasets=None if local else [data.name],
        metrics=["accuracy"] if "top1" in metrics else None,
        eval_results=results or None,
    )
    distillation_loss = args.build_loss()
    weights = distillation_loss.weights if distillation_loss is not None else {}
    taken = loss_options(args.loss) if distillation_loss is not None else ()
    options = {key: getattr(distillation_loss, key) for key in taken if key not in WEIGHTS}
    if "k" in options and options.get("class_k") is None:
        options["k"] = distillation_loss.legal_k(len(data.label_names))
    template = files("hf_gdkd.model_cards").joinpath("student.md").read_text(encoding="utf-8")
    card = ModelCard.from_template(
        card_data,
        template_str=template,
        name=name,
        repo=args.hub_model_id or folder,
        student=student,
        pretrained=origin.pretrained,
        own_network=PreTrainedConfig.get_config_dict(folder)[0].get("model_type") == CifarConfig.model_type,
        teachers=[
            f"`{resolve_name(name)}`{'' if commit is None or Path(name).is_dir() else f'@{commit}'}"
            for name, commit in origin.teachers
        ],
        student_commit=origin.student_revision,
        dataset_commit=origin.dataset_revision,
        command=origin.command,
        hardware=hardware(args.device),
        loss=args.loss,
        loss_terms=" + ".join(f"{weight:g} × {part}" for part, weight in weights.items()),
        options=", ".join(f"{key} {value}" for key, value in options.items() if value is not None),
        on_hub=args.hub_model_id is not None,
        ce_weight=args.ce_weight,
        kd_weight=args.kd_weight,
        dataset=dataset,
        num_labels=len(data.label_names or []),
        eval_split=data.eval_split,
        images=len(data.eval),
        metrics=metrics,
        versions={package: version(package) for package in PACKAGES},
    )
    card.save(Path(folder, "README.md"))


def license_of(name: str, revision: str | None) -> str | None:
    """The license that a model's card on the Hub states; None where there is none to read."""
    try:
        path = hf_hub_download(name, "README.md", revision=revision)
        return ModelCard.load(path).data.license
    except (*HUB_ERRORS, YAMLError):
        return None


def hardware(device: torch.device) -> str:
    """What the speeds were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"
