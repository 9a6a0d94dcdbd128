"""Measure a model on a data set, beside its teacher and a baseline.

    python scripts/evaluate.py --model runs/student --teacher runs/digits-teacher

The data are those that the model held out in its training, as its recipe.yaml says, unless the flags say otherwise.
Prints and writes (`--output`, by default evaluation.json in the model's folder) the metrics, parameters, FLOPs and
images per second of every model, and the agreement of model and baseline with the teacher. The metrics are top-1,
top-5, negative log-likelihood in nats and expected calibration error; of semantic segmentation, mean IoU, pixel
accuracy and the IoU of each class. Under torchrun the processes share the rows.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from hf_gdkd.commands.arguments.help import show_help

    show_help("evaluate")

import json
import logging
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from hf_gdkd.commands.evaluated_data import has_seen, parse_evaluation, trained_with
from hf_gdkd.commands.running import quiet, run
from hf_gdkd.errors import InputError
from hf_gdkd.models.heads import class_names
from hf_gdkd.models.label_map import load_label_map
from hf_gdkd.models.loading import pin_revision
from hf_gdkd.tasks.registry import task_of
from hf_gdkd.tasks.task import Source
from hf_gdkd.training.teacher import Teacher

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Measure; returns what the JSON holds: by role (model, teacher, baseline) its name, revision and numbers."""
    options, wanted = parse_evaluation(argv)
    output, state = writable(options), PartialState(cpu=options.device == "cpu" or not torch.cuda.is_available())
    quiet()
    task, sources = task_of(wanted.task), {}
    for role in ("model", "teacher", "baseline"):
        if (name := getattr(options, role)) is None:
            continue
        revision = pin_revision(name, getattr(options, "revision" if role == "model" else f"{role}_revision"))
        sources[role] = Source(name, revision, wanted.trust_remote_code)
    data = task.load_data(wanted.dataset, models=list(sources.values()), **wanted.data_options(), eval_only=True)
    models = {}
    for role, source in sources.items():
        same = next((models[other] for other in models if sources[other] == source), None)
        if same is None and has_seen(trained_with(source.name, source.revision), wanted):
            logger.warning("%s was trained on some of these rows: it does better on them than on others.", source.name)
        models[role] = same or Teacher.load(source.name, kind=task.kind, **source.options)
        data.label_names = data.label_names or class_names(models[role].model)
        if same is None:
            match(models[role], role, data.label_names, wanted.label_map, data.name)
    found = task.compare(
        models, data, batch_size=options.batch_size, device=options.device or state.device,
        window=wanted.window,
    )  # fmt: skip
    results = {
        role: {"name": source.name, "revision": source.revision, **found[role]} for role, source in sources.items()
    }
    if state.is_main_process:
        for role, numbers in results.items():
            print(f"{role} {numbers['name']} on {data.name} ({data.eval_split}, {len(data.eval)} images)")
            shown = {key: value for key, value in numbers.items() if key not in ("name", "revision")}
            shown |= {f"IoU of {name}": value for name, value in shown.pop("iou", {}).items()}
            print("".join(f"  {key:20} {'-' if x is None else format(x, '.6g')}\n" for key, x in shown.items()), end="")
        output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(f"written to {output}")
    return results


def writable(options: Namespace) -> Path:
    """The file to write, which is checked before anything is measured; so is the device.

    Raises:
        InputError: its folder does not exist or cannot be written to, or there is no such device.
    """
    output = Path(
        options.output or (Path(options.model) if Path(options.model).is_dir() else Path()) / "evaluation.json"
    )
    if not output.parent.is_dir():
        raise InputError(f"output {output} is in a folder that does not exist: create {output.parent}, or use another.")
    if output.is_dir() or not os.access(output if output.exists() else output.parent, os.W_OK):
        raise InputError(f"output {output} cannot be written: use --output with another file.")
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {options.device} is not there: use cpu, cuda, or a GPU such as cuda:0.") from error
    return output


def match(model: Teacher, role: str, label_names: Sequence[str], label_map: str | None, data_name: str) -> None:
    """Match a model's classes to the data set's; the label map is for the teacher, and for others that need it.

    Raises:
        InputError: they do not match.
    """
    if role != "teacher":
        try:
            return model.match(label_names, model.view, data_name=data_name)
        except InputError:
            if label_map is None:
                raise
    model.match(label_names, model.view, label_map and load_label_map(label_map), data_name=data_name)


if __name__ == "__main__":
    run(main)
