"""Repeat the optimizer step at which a run was stopped because a loss or a gradient was not finite.

    python scripts/replay.py runs/student/checkpoint-7

Prints each part of the loss and the norm of the gradients, as the run had them and as they are now, and the weights
whose gradients are not finite. Other flags change the settings of the run, such as `--bf16 false` or `--use_cpu`.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from hf_gdkd.commands.arguments.help import show_help

    show_help("replay")

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_gdkd.commands.arguments.other_flags import replay_parser
from hf_gdkd.commands.arguments.parsing import parse
from hf_gdkd.commands.running import quiet, run
from hf_gdkd.commands.teachers import teacher_of_step
from hf_gdkd.data.datasets import collate
from hf_gdkd.data.segmentation_views import view_of
from hf_gdkd.errors import InputError
from hf_gdkd.models.heads import class_names
from hf_gdkd.models.loading import load_processor, load_trained
from hf_gdkd.tasks.registry import task_of
from hf_gdkd.training.replay import repeat_step
from hf_gdkd.training.run_files import SETTINGS_FILE
from hf_gdkd.training.stopped_step import BadStep
from hf_gdkd.training.teacher import Ensemble
from hf_gdkd.training.trainer import GDKDTrainer

STEP_ALONE = [
    "--report_to",
    "none",
    "--eval_strategy",
    "no",
    "--save_strategy",
    "no",
    "--load_best_model_at_end",
    "false",
]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Repeat a step; returns what `repeat_step` does."""
    options, flags = replay_parser().parse_known_args(argv)
    checkpoint = Path(options.checkpoint)
    first = BadStep.load(checkpoint)[0]
    settings = checkpoint.parent / SETTINGS_FILE
    if not settings.is_file():
        raise InputError(
            f"{checkpoint.parent} has no {SETTINGS_FILE}: for a run from Python, make its trainer again and call "
            "hf_gdkd.training.replay.repeat_step(trainer, checkpoint)."
        )
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        script, args = parse(["--config", str(settings), *flags, "--output_dir", folder, *STEP_ALONE])
        source = {"trust_remote_code": script.trust_remote_code}
        student = load_trained(str(checkpoint), task_of(script.task).kind, **source)
        view = view_of(load_processor(str(checkpoint), **source), student)
        names = class_names(student)
        batch = first.batches[0]
        teachers = [teacher_of_step(script, args, i, names, view, batch) for i in range(len(script.teachers()))]
        samples = [{name: values[i] for name, values in batch.items()} for i in range(2)]
        trainer = GDKDTrainer(
            student,
            Ensemble(teachers, script.teacher_weights) if len(teachers) > 1 else next(iter(teachers), None),
            args,
            train_dataset=samples,
            data_collator=collate,
        )
        repeated = repeat_step(trainer, str(checkpoint))
    print(f"step {repeated['step']}")
    for name, value in repeated["found"].items():
        print(f"  {name}: {value:.6g} (in the run: {repeated['recorded'].get(name, float('nan')):.6g})")
    if names := repeated["gradients"]:
        print(f"  gradients that are not finite: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}")
    return repeated


if __name__ == "__main__":
    run(main)
