"""The model card of a student: its metadata and its text, from the template and what the run measured."""

from __future__ import annotations

import re
import shlex
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
from ..data.sources import EMBEDDED
from ..hub_client import HUB_ERRORS
from ..losses import DistillationLoss, loss_options
from ..models.configuration import OWN_MODULES
from ..models.names import is_segmentation_network, resolve_name, weights_source
from ..training.balance import found_weights
from ..training.config import GDKDConfig
from ..training.run_files import CARD, GRADIENTS_PICTURE, SEGMENTATION_PICTURE, replacing
from .wording import CLASSIFICATION, WORDINGS

WEIGHTS = ("w0", "w1", "w2", "alpha", "beta", "gamma", "distance_weight", "angle_weight")
PACKAGES = ("hf_gdkd", "torch", "transformers", "datasets", "timm")


@dataclass
class Origin:
    """What a student was made from: names as the user wrote them, and commits of what is on the Hub."""

    student: str
    pretrained: bool  # whether it started from the student's weights
    teachers: Sequence[tuple[str, str | None]]  # name and commit
    student_revision: str | None = None
    dataset_revision: str | None = None
    license: str | None = None
    command: str = ""  # what started the run
    local_flags: Sequence[str] = ()  # those that name files or folders here, which others do not have
    label_free: bool = False  # whether the labels were the teacher's classes
    task: str = CLASSIFICATION
    from_teacher: bool = False  # whether it started from weights of the first teacher

    @property
    def start(self) -> str | None:
        """The model whose weights it started from, as the user wrote it; None for random ones."""
        return self.student if self.pretrained else self.teachers[0][0] if self.from_teacher else None


def write_card(
    folder: str, origin: Origin, args: GDKDConfig, data: Data, metrics: Mapping[str, Any], repo: str | None = None
) -> None:
    """Write README.md, the card of the student in `folder`, completely or not at all.

    Of local folders it names the last part only.

    Args:
        folder: the output folder of the run.
        origin, args, data: what the student was made from, and how.
        metrics: what metrics.json holds; what could not be measured is missing.
        repo: the repository on the Hub that the student is pushed to, if it is known.
    """
    name, words = Path(folder).resolve().name, WORDINGS[origin.task]
    student = resolve_name(origin.student)
    base = None if origin.start is None or Path(origin.start).is_dir() else weights_source(resolve_name(origin.start))
    teachers = [shared_name(resolve_name(teacher)) for teacher, _ in origin.teachers]
    local = data.name in EMBEDDED or Path(data.name).is_dir()
    dataset = EMBEDDED.get(data.name) or shared_name(data.name)
    results = [
        EvalResult(
            task_type=words.pipeline,
            dataset_type=dataset.lower().replace(" ", "-") if local else data.name,
            dataset_name=dataset,
            dataset_split=data.eval_split,
            metric_type=metric,
            metric_name=metric_name,
            metric_value=metrics[key],
        )
        for key, metric, metric_name in words.results
        if key in metrics
    ]
    card_data = ModelCardData(
        model_name=name,
        license=origin.license,
        library_name="transformers",
        pipeline_tag=words.pipeline,
        tags=[words.pipeline, "knowledge-distillation", "gdkd", *(f"teacher:{name}" for name in teachers)]
        if teachers
        else [words.pipeline],
        base_model=base,
        base_model_relation=None if base is None else "finetune",
        teacher_model=teachers[0] if len(teachers) == 1 else teachers or None,
        datasets=None if local else [data.name],
        metrics=list(dict.fromkeys(metric for key, metric, _ in words.results if key in metrics)) or None,
        eval_results=results or None,
    )
    distillation_loss = args.build_loss()
    template = files("hf_gdkd.model_cards").joinpath("student.md").read_text(encoding="utf-8")
    card = ModelCard.from_template(
        card_data,
        template_str=template,
        name=name,
        repo=repo or folder,
        student=shared_name(student),
        pretrained=origin.pretrained,
        from_teacher=origin.from_teacher,
        own_module=OWN_MODULES.get(PreTrainedConfig.get_config_dict(folder)[0].get("model_type")),
        backbone=weights_source(student) if origin.pretrained and is_segmentation_network(student) else None,
        teachers=[
            f"`{teacher}`{'' if commit is None or Path(name).is_dir() else f'@{commit}'}"
            for teacher, (name, commit) in zip(teachers, origin.teachers, strict=True)
        ],
        measured_teachers=list(zip(teachers, metrics.get("teachers", {}).values(), strict=False)),
        local_flags=origin.local_flags,
        student_commit=origin.student_revision,
        dataset_commit=origin.dataset_revision,
        command=shared_command(origin.command),
        hardware=hardware(args.device),
        loss=args.loss,
        losses=[] if distillation_loss is None else _losses(args, distillation_loss, len(data.label_names or [])),
        auto_notes=args.auto_notes,
        on_hub=repo is not None,
        ce_weight=args.ce_weight,
        binary=args.binary_cross_entropy,
        kd_weight=args.kd_weight,
        kd_factor=args.kd_factor,
        dataset=dataset,
        num_labels=len(data.label_names or []),
        eval_split=data.eval_split,
        images=len(data.eval),
        chosen=args.load_best_model_at_end and "best" in metrics,
        measured="images_per_second" in metrics,
        label_free=origin.label_free,
        metrics=metrics,
        words=words,
        picture=SEGMENTATION_PICTURE if Path(folder, SEGMENTATION_PICTURE).is_file() else None,
        gradients=GRADIENTS_PICTURE if Path(folder, GRADIENTS_PICTURE).is_file() else None,
        versions={package: version(package) for package in PACKAGES},
    )
    with replacing(Path(folder, CARD)) as part:
        card.save(part)


def _losses(args: GDKDConfig, loss: DistillationLoss, num_classes: int) -> list[dict[str, Any]]:
    """Every loss that was added up: its name, its weight among them, its terms with their weights, its options."""
    weights, found = found_weights(args.loss, loss, args.kd_weight), []
    for member, each in loss.members.items():
        taken = [option for option in loss_options(member or args.loss) if option not in WEIGHTS]
        options = {option: getattr(each, option, None) for option in taken}
        if "k" in options and options.get("class_k") is None:
            options["k"] = each.legal_k(num_classes)
        found.append({
            "name": member or args.loss,
            "weight": weights[member],
            "terms": " + ".join(f"{weight:g} × {part}" for part, weight in each.weights.items()),
            "options": ", ".join(f"{key} {value}" for key, value in options.items() if value is not None),
        })  # fmt: skip
    return found


def shared_name(name: str) -> str:
    """Shorten the name of a local file or folder to its last part, which is all that others may know of it."""
    return Path(name).resolve().name if Path(name).exists() else name


def shared_command(command: str) -> str:
    """Shorten the absolute paths in a command to their last part."""
    return shlex.join(re.sub(r"(?<![^=])[/~].*/", "", word) for word in shlex.split(command))


def license_of(name: str, revision: str | None) -> str | None:
    """Read the license in a model's card on the Hub; None if there is none to read."""
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
