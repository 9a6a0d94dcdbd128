"""What follows training: the student is saved first; then it is measured, described in a card, drawn and pushed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data.loading import Data
from ..data.sources import EMBEDDED
from ..data.streaming import AugmentedStream
from ..data.views import View
from ..errors import first_sentence
from ..evaluation.measurement import size_and_speed
from ..models.loading import save_processor
from ..models.names import resolve_name
from ..publishing.card import Origin, license_of, write_card
from ..publishing.upload import push
from ..tasks import task_of
from ..training.cached_teacher import CachedTeacher
from ..training.run_files import best_and_last, ms_per_step, write_metrics
from ..training.teacher import Teacher
from ..training.trainer import GDKDTrainer
from ..training.training_picture import draw_training, examples_of
from .arguments.distill_flags import DistillArguments

logger = logging.getLogger(__name__)


def finish(
    trainer: GDKDTrainer,
    script: DistillArguments,
    data: Data,
    view: View,
    teachers: list[Teacher | CachedTeacher],
    *,
    seconds: float,
    begun: int,
    command: str,
) -> dict[str, Any]:
    """Save, measure, describe and push the student of a run; returns what metrics.json holds.

    Student, metrics and card are on disk before the teachers are measured, and are written again after it. A step
    that fails after the student is saved is reported as a warning, and the others follow.

    Args:
        trainer: has trained.
        script, data, view, teachers: those of the run; `view` is the student's.
        seconds: how long the training took, from optimizer step `begun` on.
        command: what started the run, for the card.
    """
    task, args, folder = task_of(script.task), trainer.args, trainer.args.output_dir
    judged = "agreement" if script.label_free else task.words.judged
    trainer.save_model(_internal_call=True)  # nothing is pushed before the card is written
    if trainer.is_world_process_zero():
        save_processor(trainer.processing_class, folder)
    metrics: dict[str, Any] = best_and_last(trainer.state.log_history, judged)
    metrics |= {
        "epochs": trainer.state.epoch,
        "ms_per_step": ms_per_step(seconds, trainer.state, begun),
        "extra_parameters": sum(p.numel() for p in trainer.projections.parameters()),
    }
    if script.on_bad_image == "skip":
        train = trainer.train_dataset
        metrics["bad_images"] = data.bad_images + (train.bad_images() if isinstance(train, AugmentedStream) else 0)

    origin = _origin(script, command)

    def write() -> None:
        if trainer.is_world_process_zero():
            with _reported("the metrics were not written"):
                write_metrics(folder, metrics)
            with _reported("the card was not written"):
                write_card(folder, origin, args, data, metrics, trainer.hub_model_id if args.push_to_hub else None)

    # On every process: each has its share of the rows.
    answers, options = None, {"device": args.device, "workers": args.dataloader_num_workers, "window": script.window}
    with _reported("the student was not measured"):
        answers, numbers = task.measure(trainer.model, data, view, **options)
        if script.label_free:  # the labels are the teacher's classes
            numbers = {"agreement": numbers["top1"]} | size_and_speed(numbers)
        metrics |= numbers
    with _reported("the last evaluation was not logged"):
        trainer.log({f"eval_{key}": metrics[key] for key in task.logged if key in metrics})
    write()
    if teachers and answers is not None:
        with _reported("the teacher was not measured"):
            labelled, weights = not script.label_free, script.teacher_weights
            metrics |= task.beside(answers, teachers, data, weights, labelled=labelled, **options)
        write()
    if trainer.is_world_process_zero():
        with _reported("the picture of the answers was not drawn"):
            task.draw(Path(folder), trainer.model, view, teachers, data, script.window)
        write()
    examples = []
    with _reported("no crops were drawn"):
        examples = examples_of(trainer, view)
    if trainer.is_world_process_zero():
        with _reported("the picture of the training was not drawn"):
            title = f"{folder}: {args.loss} on {data.name}"
            draw_training(folder, trainer.state.log_history, title, examples, data.label_names)
        if judged in metrics:
            print(f"{folder}: {judged} {metrics[judged]:.2%} on {data.name} ({data.eval_split})")
        if metrics.get("bad_images"):
            print(f"{metrics['bad_images']} images could not be read and were left out")
        if args.push_to_hub:
            push(folder, trainer.hub_model_id, private=args.hub_private_repo, token=args.hub_token)
    return metrics


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turn an error inside into a warning: the student is saved, and the steps that follow may still succeed."""
    try:
        yield
    except Exception as error:  # whatever a model, a disk or a logging service does
        logger.warning("%s (%s): %s The student is saved.", what, type(error).__name__, first_sentence(error))
        logger.debug("", exc_info=True)


def _origin(script: DistillArguments, command: str) -> Origin:
    """Where the student comes from, for the card; its license is that of the weights it started from."""
    origin = Origin(
        script.student, script.student_init == "pretrained", script.teachers(), script.student_revision,
        script.dataset_revision, script.license, command, label_free=script.label_free, task=script.task,
        from_teacher=script.student_init == "teacher",
    )  # fmt: skip
    if origin.license is None and origin.start is not None and not Path(origin.start).is_dir():
        revision = script.student_revision if origin.pretrained else script.teachers()[0][1]
        origin.license = license_of(resolve_name(origin.start), revision)
    files = {"teacher": script.teacher, "student": [script.student], "label_map": script.label_map}
    files |= {name: [getattr(script, name) or ""] for name in ("loss_file", "id2label", "palette")}
    files["dataset"] = [] if script.dataset in EMBEDDED else [script.dataset]
    local = [flag for flag, names in files.items() if any(name and Path(name).exists() for name in names or ())]
    origin.local_flags = local
    return origin
