"""Distil a teacher into a smaller student.

    accelerate launch scripts/distill.py --teacher google/vit-base --student deit-tiny --loss gdkd3

Without a teacher, `--loss ce` trains a teacher or a baseline with the same code. Every run leaves a recipe.yaml that
repeats it: `--config runs/student/recipe.yaml --output_dir runs/again`. Offline, on embedded data: `make demo`.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # evaluate.py in this folder must not stand in for the library evaluate

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from hf_gdkd.checkpoints import check_same_run, checkpoint_to_resume
from hf_gdkd.cli import command_line, parse, recipe_of, run
from hf_gdkd.data import check_images, load_data
from hf_gdkd.evaluation import check_teacher, measure, predict
from hf_gdkd.hub import push, write_card
from hf_gdkd.labels import load_label_map
from hf_gdkd.metrics import compute_agreement, compute_metrics
from hf_gdkd.models import class_names, load_model, load_processor, load_teacher, pin_revision, save_processor
from hf_gdkd.report import draw_training, read_recipe, write_metrics, write_recipe
from hf_gdkd.teacher import Teacher
from hf_gdkd.trainer import GDKDTrainer
from hf_gdkd.views import Augmented, EvalTransform, TrainTransform, View, collate


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run once; returns what metrics.json holds."""
    script, args = parse(argv)
    checkpoint = checkpoint_to_resume(args, script.overwrite)
    logging.basicConfig(format="%(message)s")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    set_seed(args.seed)

    data = load_data(
        script.dataset,
        config=script.dataset_config,
        train_split=script.train_split,
        eval_split=script.eval_split,
        image_column=script.image_column,
        label_column=script.label_column,
        revision=script.dataset_revision,
        seed=args.seed,
        require_labels=not script.label_free,
        ignore_labels=script.label_free,
    )
    for split in (data.train, data.eval):
        check_images(split, f"data set {data.name}:")

    if script.student_init == "pretrained":
        script.student_revision = pin_revision(script.student, script.student_revision)
    if script.teacher is not None:
        script.teacher_revision = pin_revision(script.teacher, script.teacher_revision)
    recipe = recipe_of(script, args)
    if checkpoint is not None:
        check_same_run(recipe, read_recipe(Path(checkpoint).parent) or recipe)

    trust = {"trust_remote_code": script.trust_remote_code}
    teacher_model = teacher_view = teacher = None
    if script.teacher is not None:
        teacher_model = load_teacher(script.teacher, revision=script.teacher_revision, **trust)
        teacher_view = View(load_processor(script.teacher, revision=script.teacher_revision, **trust))
    if script.label_free:
        data.label_names = class_names(teacher_model)
    student = load_model(
        script.student,
        label_names=data.label_names,
        init=script.student_init,
        revision=script.student_revision,
        **trust,
    )
    processor = load_processor(script.student, revision=script.student_revision, **trust)
    view = View(processor)

    if teacher_model is not None:
        teacher = Teacher.matched(
            teacher_model,
            teacher_view,
            view,
            data.label_names,
            label_map=script.label_map and load_label_map(script.label_map),
            dtype=args.teacher_dtype and getattr(torch, args.teacher_dtype),
            source_name=script.teacher,
            target_name=data.name,
        ).to(args.device)
        if script.label_free:
            logits, *_ = predict(teacher_model, data.eval, teacher_view, device=args.device)
            data.eval = data.eval.add_column("labels", logits.argmax(-1))  # so that accuracy is agreement
        else:
            check_teacher(teacher, teacher_view, data.eval, allow_weak=script.allow_weak_teacher)
    args.dataloader_pin_memory &= args.device.type != "cpu"
    separate = teacher_view if teacher_view is not None and not view.same_geometry(teacher_view) else None
    crop_scale = data.crop_scale if script.crop_scale is None else script.crop_scale
    flip = data.flip if script.flip is None else script.flip
    trainer = GDKDTrainer(
        model=student,
        teacher_model=teacher,
        args=args,
        train_dataset=Augmented(
            data.train, TrainTransform(view, separate, crop_scale=crop_scale, flip=flip), seed=args.seed
        ),
        eval_dataset=data.eval.with_transform(EvalTransform(view)),
        processing_class=processor,
        data_collator=collate,
        compute_metrics=compute_agreement if script.label_free else compute_metrics,
    )
    if trainer.is_world_process_zero():
        write_recipe(args.output_dir, recipe)
    training = trainer.train(resume_from_checkpoint=checkpoint).metrics
    evaluation = trainer.evaluate()
    trainer.save_model(_internal_call=True)  # nothing is pushed before the card is written

    metrics = {key.removeprefix("eval_"): value for key, value in evaluation.items() if key != "epoch"}
    seconds = training["train_runtime"]  # evaluations included
    metrics |= {"epochs": trainer.state.epoch, "ms_per_step": 1000 * seconds / trainer.state.global_step}
    if trainer.is_world_process_zero():
        measured = ["parameters", "flops", "images_per_second"]
        logits, numbers = measure(student, data.eval, view, device=args.device)
        metrics |= {key: numbers[key] for key in measured}
        if teacher_model is not None:
            columns = None if teacher.columns is None else teacher.columns.cpu()
            teacher_logits, numbers = measure(
                teacher_model.float(), data.eval, teacher_view, columns=columns, device=args.device
            )
            agreement = float((logits.argmax(-1) == teacher_logits.argmax(-1)).mean())
            kept = measured if script.label_free else numbers
            metrics |= {"agreement": agreement, "teacher": {key: numbers[key] for key in kept}}
        folder = args.output_dir
        save_processor(processor, folder)
        write_metrics(folder, metrics)
        draw_training(folder, trainer.state.log_history, f"{folder}: {args.loss} on {data.name}")
        write_card(folder, script, args, data, metrics, command=command_line(argv))
        judged = "agreement" if script.label_free else "top1"
        print(f"{folder}: {judged} {metrics[judged]:.2%} on {data.name} ({data.eval_split})")
        if args.push_to_hub:
            push(folder, trainer.hub_model_id, private=args.hub_private_repo, token=args.hub_token)
    return metrics


if __name__ == "__main__":
    run(main)
