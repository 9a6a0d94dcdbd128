"""The model card of a student that was trained from Python: what its trainer knows, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Real
from pathlib import Path
from typing import Any

import datasets
from torch import nn
from transformers import PreTrainedModel
from transformers.modelcard import extract_hyperparameters_from_trainer

from ..data.loading import Data
from ..errors import InputError
from ..models.kinds import SEGMENTER, kind_of
from ..models.names import resolve_name
from ..training.options import LOSS_OPTIONS, DistillationOptions
from ..training.trainer import GDKDTrainer
from .card import FromPython, Origin, license_of, write_card
from .wording import CLASSIFICATION, SEGMENTATION, WORDINGS, Wording

PACE = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")  # what is no result


def write_trainer_card(
    trainer: GDKDTrainer,
    language: str | None = None,
    license: str | None = None,
    tags: str | Sequence[str] | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    tasks: str | Sequence[str] | None = None,
    dataset_tags: str | Sequence[str] | None = None,
    dataset: str | Sequence[str] | None = None,
    dataset_args: str | Sequence[str] | None = None,
) -> None:
    """Write README.md, the card of a trainer's student, into its output folder; what is not known is left out.

    Student and teachers are named as they were loaded. The data set is known where `load_data` or `load_dataset` read
    the training data, the numbers are those of the last evaluation of these weights. The arguments are those of
    `Trainer.create_model_card` and `push_to_hub`, and say what the trainer cannot know; `tasks` and `dataset_args` are
    taken and not used, as the task is known and the card names no configuration.
    """
    model, args = trainer.accelerator.unwrap_model(trainer.model), trainer.args
    task = SEGMENTATION if kind_of(model) is SEGMENTER else CLASSIFICATION
    name, pretrained = name_and_start(model)
    teachers = [_teacher(each) for each in getattr(trainer.teacher, "teachers", [trainer.teacher]) if each is not None]
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)
    if finetuned_from is not None:
        name, pretrained, commit = _resolved(finetuned_from), True, None
    if license is None and pretrained and not Path(name).is_dir():
        license = license_of(name, commit)
    origin = Origin(
        name, pretrained, [teacher[:2] for teacher in teachers], commit, license=license, task=task,
        unnamed=[name for name, _, named in teachers if not named],
    )  # fmt: skip
    known, row = _data(trainer), last_evaluation(trainer)
    ids = _listed(dataset_tags) or ([known.name] if dataset is None and "/" in known.name else [])
    known.name = " and ".join(_listed(dataset) or _listed(dataset_tags)) or known.name
    numbers = {key.removeprefix("eval_"): value for key, value in row.items() if key.startswith("eval_")}
    numbers = {key: value for key, value in numbers.items() if key not in PACE and isinstance(value, Real)}
    step = row.get("step")
    run = FromPython(
        evaluation=_shown(numbers, WORDINGS[task]),
        evaluated=None if step is None else f"after step {step:,}",
        settings=_settings(trainer),
        own_format=not isinstance(model, PreTrainedModel),
        model_type=getattr(getattr(model, "config", None), "model_type", None),
        datasets=ids,
        model_name=model_name,
        language=language,
        tags=_listed(tags),
    )
    numbers["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    write_card(args.output_dir, origin, args, known, numbers, trainer.hub_model_id, from_python=run)


def name_and_start(model: nn.Module) -> tuple[str, bool | None]:
    """What a model is called, and whether it was loaded with its weights; None: not known."""
    config = getattr(model, "config", None)
    name = getattr(config, "name_or_path", "")
    if name and hasattr(model, "_weight_conversions"):  # which from_pretrained sets, and nothing else
        return name, True
    return name or getattr(config, "architecture", None) or type(model).__name__, None


def _teacher(teacher: Any) -> tuple[str, str | None, bool]:
    """A teacher's name, its commit, and whether the name is more than that of a class."""
    model = getattr(teacher, "model", None)
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    config = getattr(model, "config", None)
    name = getattr(teacher, "name", "teacher")
    name = getattr(config, "name_or_path", "") or (_resolved(name) if name != "teacher" else "")
    return name or type(teacher if model is None else model).__name__, getattr(config, "_commit_hash", None), bool(name)


def _resolved(name: str) -> str:
    """What a model's name stands for; a name that is of no model stays."""
    try:
        return resolve_name(name)
    except InputError:
        return name


def _data(trainer: GDKDTrainer) -> Data:
    """The name of the training data ("" if it is not known), and the classes of the student."""
    rows: Any = trainer.train_dataset
    while rows is not None and not isinstance(rows, datasets.Dataset | datasets.IterableDataset):
        rows = getattr(rows, "rows", getattr(rows, "dataset", None))  # those of this package, and torch's Subset
    info = getattr(rows, "info", None)
    name = getattr(info, "dataset_name", None) or ""
    name = "" if name == getattr(info, "builder_name", None) else name  # such as imagefolder or generator
    name = Path(name).name if Path(name).is_absolute() else name  # others do not know this machine's folders
    names = getattr(getattr(trainer.model, "config", None), "id2label", None) or {}
    return Data(name, None, None, None, list(names.values()))


def _settings(trainer: GDKDTrainer) -> dict[str, Any]:
    """The settings that Trainer's own cards list, and those of distillation that are set."""
    args = trainer.args
    listed = extract_hyperparameters_from_trainer(trainer) | {"optimizer": args.timm_optimizer or args.optim}
    if args.bf16:
        listed["mixed_precision_training"] = "bf16"
    own = {f.name: getattr(args, f.name) for f in fields(DistillationOptions) if getattr(args, f.name) != f.default}
    said = ("loss", "loss_options", "timm_optimizer", "ce_weight", "kd_weight", *LOSS_OPTIONS)
    listed |= {name: value for name, value in own.items() if name not in said}
    return {name: getattr(value, "value", value) for name, value in listed.items()}


def last_evaluation(trainer: GDKDTrainer) -> Mapping[str, Any]:
    """The row of the log that belongs to the present weights: the last evaluation, or the best if it was loaded."""
    state, rows = trainer.state, trainer.state.log_history
    ends = max((i for i, row in enumerate(rows) if "train_runtime" in row), default=-1)
    found = [row for row in rows if "eval_loss" in row]
    after = [row for row in rows[ends + 1 :] if "eval_loss" in row]
    if trainer.args.load_best_model_at_end and not after:
        found = [row for row in found if row["step"] == state.best_global_step]
    return (after or found or [{}])[-1]


def _shown(numbers: Mapping[str, float], words: Wording) -> list[tuple[str, str]]:
    """The rows of the table: what each number is called, and its value."""
    known = {key: (heading, factor, form) for heading, key, factor, form in words.columns}
    rows = []
    for key, value in numbers.items():
        heading, factor, form = known.get(key, (key, 1, "{:.4g}"))
        rows.append((heading, form.format(factor * value)))
    return rows


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
