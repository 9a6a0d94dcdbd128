"""Distil a teacher into a smaller student.

    accelerate launch scripts/distill.py --teacher google/vit-base --student deit-tiny --loss gdkd3

The paper's experiments: `--recipe cifar100/resnet32x4-resnet8x4 --loss gdkd`; `--list_recipes` names them all.

Without a teacher, `--loss ce` trains a teacher or a baseline with the same code. Every run leaves a recipe.yaml that
repeats it: `--config runs/student/recipe.yaml --output_dir runs/again`. Offline, on embedded data: `make demo`.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from hf_gdkd.commands.arguments.help import show_help

    show_help("distill")

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, set_seed

from hf_gdkd.commands.arguments.distill_flags import DistillArguments
from hf_gdkd.commands.arguments.parsing import parse
from hf_gdkd.commands.arguments.settings_file import command_line, run_settings
from hf_gdkd.commands.build import training_data
from hf_gdkd.commands.finishing import finish
from hf_gdkd.commands.presets import settle_preset
from hf_gdkd.commands.running import quiet, run
from hf_gdkd.commands.start_up import StartUp
from hf_gdkd.commands.student import build_student
from hf_gdkd.commands.teachers import check_storage, name_classes, prepare_teachers, set_views
from hf_gdkd.data.datasets import collate
from hf_gdkd.data.segmentation_views import view_of
from hf_gdkd.evaluation.measurement import measure_teacher
from hf_gdkd.models.loading import load_processor, pin_revision, possible_init
from hf_gdkd.tasks.registry import task_of
from hf_gdkd.tasks.task import Source
from hf_gdkd.training.auto_loss import settings_of_loss
from hf_gdkd.training.config import GDKDConfig
from hf_gdkd.training.run_files import SettingsWriter, read_run_settings
from hf_gdkd.training.run_folder import checkpoint_to_resume, in_use
from hf_gdkd.training.same_run import check_same_run, keep_found
from hf_gdkd.training.teacher import Ensemble
from hf_gdkd.training.trainer import GDKDTrainer


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run once; returns what metrics.json holds."""
    start_up = StartUp()
    script, args = parse(argv)
    start_up.done("arguments")
    with in_use(args.output_dir, writes=args.should_save):
        return distil(script, args, command_line(argv), start_up)


def distil(script: DistillArguments, args: GDKDConfig, command: str, start_up: StartUp) -> dict[str, Any]:
    checkpoint = checkpoint_to_resume(args.output_dir, args.resume_from_checkpoint, overwrite=script.overwrite)
    quiet()
    set_seed(args.seed)

    task = task_of(script.task)
    script.student_init = possible_init(script.student, script.student_init)
    if script.student_init == "pretrained":
        script.student_revision = pin_revision(script.student, script.student_revision)
    pinned = [pin_revision(*teacher) for teacher in script.teachers()]
    script.teacher_revision = [commit or "none" for commit in pinned] if any(pinned) else None
    source = Source(script.student, script.student_revision, script.trust_remote_code)
    models = [Source(*teacher, script.trust_remote_code) for teacher in script.teachers()]
    models += [source] if script.student_init == "pretrained" else []
    data = task.load_data(script.dataset, models=models, **script.data_options(), seed=args.seed)
    start_up.done("data")
    script.dataset_revision = data.revision
    check_storage(script, args)
    settle_preset(script, args, 0 if script.streaming else len(data.train))
    set_views(script, args, 0 if script.streaming else len(data.train))
    earlier = checkpoint and read_run_settings(Path(checkpoint).parent)
    if earlier:
        keep_found(args, earlier)
    settings = run_settings(script, args)
    if earlier:
        check_same_run(settings, earlier)

    name_classes(script, data)
    student = build_student(script, source, data.label_names, resumes=checkpoint is not None)
    processor = load_processor(script.student, init=script.student_init, **source.options)
    task.finish_processor(processor, data)
    view = view_of(processor, student)
    teachers = prepare_teachers(script, args, data, view)
    if script.label_free:
        logits, _ = measure_teacher(teachers[0], data.eval, device=args.device)
        data.eval = data.eval.add_column("labels", logits.argmax(-1))  # so that accuracy is agreement
    start_up.done("models")

    train = training_data(script, args, data, view, teachers)
    trainer = GDKDTrainer(
        model=student,
        teacher_model=Ensemble(teachers, script.teacher_weights) if len(teachers) > 1 else next(iter(teachers), None),
        args=args,
        train_dataset=train,
        processing_class=processor,
        data_collator=collate,
        **task.evaluation(data, view, label_free=script.label_free),
    )
    if script.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(script.early_stopping_patience))
    trainer.add_callback(SettingsWriter(args.output_dir, settings | settings_of_loss(trainer.args)))
    if script.profile:
        trainer.add_callback(start_up)
    resume = checkpoint or args.resume_from_checkpoint
    seconds = trainer.train(resume_from_checkpoint=resume, overwrite=script.overwrite).metrics["train_runtime"]
    return finish(trainer, script, data, view, teachers, seconds=seconds, begun=trainer.first_step, command=command)


if __name__ == "__main__":
    run(main)
