"""What `hf-gdkd analyze` does for segmenters."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..evaluation.advice import advise
from ..evaluation.costs import describe_costs
from ..evaluation.differences import Differences
from ..evaluation.distribution import Distribution
from ..evaluation.report import Report
from ..evaluation.segmentation_measurement import Segmenter
from ..evaluation.segmentation_report import describe_segmenters, pixel_answers
from ..evaluation.teacher_report import describe_teacher
from ..models.label_map import load_label_map
from ..models.loading import pin_revision
from ..tasks import task_of
from ..tasks.task import Source
from ..training.auto_loss import family_of
from ..training.teacher import Teacher
from .arguments.distill_flags import DistillArguments
from .report_folder import DEFAULT_EPOCHS, distill_command, subject


def analyze_pixels(options: Namespace, wanted: DistillArguments) -> dict[str, Any]:
    """Look at segmenters, pixel by pixel; writes the report and returns its numbers.

    Raises:
        InputError: what cannot be loaded or matched.
    """
    state = PartialState(cpu=options.device == "cpu" or not torch.cuda.is_available())
    device, task, folder = torch.device(options.device or state.device), task_of(wanted.task), Path(options.output_dir)
    sources = {}
    for role in ("teacher", "student"):
        if (name := getattr(options, role)) is not None:
            revision = pin_revision(name, getattr(options, f"{role}_revision"))
            sources[role] = Source(name, revision, wanted.trust_remote_code)
    data = task.load_data(wanted.dataset, models=list(sources.values()), **wanted.data_options(), eval_only=True)
    names, loaded = data.label_names, {}
    for role, source in sources.items():
        loaded[role] = Teacher.load(source.name, kind=task.kind, **source.options)
        label_map = load_label_map(wanted.label_map) if wanted.label_map and role == "teacher" else None
        loaded[role].match(names, loaded[role].view, label_map, data_name=data.name)
    models = {role: Segmenter.of(each) for role, each in loaded.items()}
    distributions = {role: Distribution(len(names), options.temperature, unit="pixels") for role in models}
    differences = Differences(len(names)) if "student" in models else None
    for each in pixel_answers(models, data.eval, window=wanted.window, device=device):
        for role, logits in each.logits.items():
            distributions[role].add(logits, each.labels)
        if differences is not None:
            differences.add(each.rows, each.logits["teacher"], each.logits["student"], each.labels)
    for each in (*distributions.values(), *([] if differences is None else [differences])):
        each.gather(device)
    measured = task.compare(
        loaded, data, batch_size=options.batch_size, device=device, window=wanted.window
    )  # fmt: skip
    measured = {role: measured[role] for role in models}
    shown, found = f"{data.name} ({data.eval_split})", distributions["teacher"]
    numbers = subject(options, wanted, shown) | {"pixels": found.images}
    if not state.is_main_process:
        return numbers
    against = "" if options.student is None else f", student: {options.student}"
    subtitle = f"{found.images:,} pixels of {len(data.eval):,} images of {shown}"
    report = Report(f"Teacher: {options.teacher}{against}", subtitle)
    numbers |= describe_teacher(report, found, names)
    numbers["comparison"] = describe_segmenters(
        report, folder, measured, distributions, differences, models, data.eval, names,
        palette=data.palette, window=wanted.window, device=device,
    )  # fmt: skip
    family = family_of(models["student"].model) if "student" in models else None
    command = distill_command(options, wanted)
    numbers["advice"] = advise(report, found, found, command, student=family, epochs=DEFAULT_EPOCHS, maps=True)
    numbers["cost"] = describe_costs(
        report, loaded, len(names), batch_size=options.batch_size, device=device, cacheable=False
    )
    report.write(folder, numbers)
    return numbers
