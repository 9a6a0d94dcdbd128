"""What a run's arguments must be, beyond their types: checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable

from ...data.augment import AUTO_AUGMENT
from ...errors import InputError
from ...losses import DistillationLoss, DKDLoss
from ...models.loading import INITS
from ...publishing.wording import WORDINGS
from ...training.config import GDKDConfig
from ..recipes import check_teacher_is_trained
from .distill_flags import TASK_DEFAULTS, TASK_FLAGS, DistillArguments


def check_arguments(script: DistillArguments, args: GDKDConfig, needs_student: bool = True) -> None:
    """Refuse values that are out of range, and arguments that do not go together.

    Raises:
        InputError: the first that is wrong.
    """
    _check_task(script, args)
    if needs_student and script.student is None:
        raise InputError("no student: use --student (a Hub id, a timm id or a local folder).")
    if script.student_init not in INITS:
        raise InputError(f"student_init is {script.student_init!r}: choose {', '.join(INITS[:-1])} or {INITS[-1]}.")
    if script.student_init == "teacher" and script.teacher is None:
        raise InputError("student_init is teacher, and there is none: use --teacher, or another --student_init.")
    if script.on_bad_image not in ("error", "skip"):
        raise InputError(f"on_bad_image is {script.on_bad_image!r}: choose error or skip.")
    if script.streaming:
        _check_streaming(script, args)
    if script.shuffle_buffer is not None and (script.shuffle_buffer < 1 or not script.streaming):
        what = "use a number of at least 1" if script.streaming else "it is for --streaming alone, so leave it out"
        raise InputError(f"shuffle_buffer is {script.shuffle_buffer}: {what}.")
    if (script.teacher is None) != (args.loss == "ce"):
        raise InputError(
            f"loss {args.loss} needs a teacher: use --teacher, or train without one with --loss ce."
            if script.teacher is None
            else "loss ce takes no teacher: choose a distillation loss, or leave --teacher out."
        )
    check_teacher_is_trained(script.teacher)
    for name in ("teacher_weights", "teacher_revision", "label_map", "teacher_cache"):
        given, teachers = getattr(script, name), len(script.teacher or [])
        if given is not None and len(given) != teachers:
            raise InputError(f"{name} has {len(given)} values for {teachers} teachers: set one per teacher.")
    if script.label_free:
        _check_label_free(script, args)
    if script.crop_scale is not None and not 0 < script.crop_scale <= 1:
        raise InputError(f"crop_scale is {script.crop_scale}: use a number above 0 and at most 1.")
    _check_evaluation(script, args)
    _check_rows(script)
    _check_augmentation(script, args)


def _check_task(script: DistillArguments, args: GDKDConfig) -> None:
    if script.task not in TASK_FLAGS:
        raise InputError(f"task is {script.task!r}: choose one of {', '.join(TASK_FLAGS)}.")
    if script.teacher_cache is not None and script.task == "semantic-segmentation":
        raise InputError(
            "a teacher cache holds the logits of whole images, and those of each pixel would take megabytes for every "
            "view of an image (19 classes at 256 x 256: 2.5 MB): leave --teacher_cache out."
        )
    unset = vars(DistillArguments()) | dict.fromkeys(
        ("resize_logits", "record_gradients", "binary_cross_entropy"), False
    )
    for task, flags in TASK_FLAGS.items():
        for name in flags if task != script.task else ():
            if (getattr(args, name) if hasattr(args, name) else getattr(script, name)) != unset[name]:
                raise InputError(f"{name} is for --task {task}, and this run is {script.task}: leave it out.")
    if "cwd" in args.loss.split("+") and script.task == "image-classification":
        raise InputError("loss cwd is for --task semantic-segmentation: choose another loss.")
    if (size := script.crop_size) is not None and not (len(size) in (1, 2) and min(size) >= 1):
        raise InputError(f"crop_size is {' '.join(map(str, size))}: use a height and a width, or one side, in pixels.")
    if (scale := script.scale_range) is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1]):
        raise InputError(f"scale_range is {' '.join(map(str, scale))}: use two factors above 0, the smaller first.")
    if script.window is not None and script.window < 1:
        raise InputError(f"window is {script.window}: use a number of pixels of at least 1.")


def _check_evaluation(script: DistillArguments, args: GDKDConfig) -> None:
    by_batch = TASK_DEFAULTS[script.task].get("batch_eval_metrics", False)
    whole = {"batch_eval_metrics": by_batch, "prediction_loss_only": False, "eval_do_concat_batches": True}
    for name, needed in whole.items():
        if getattr(args, name) is not needed:
            needs = "mean IoU needs the predictions by batch" if by_batch else "accuracy needs all predictions at once"
            raise InputError(f"{name} is {not needed}, and {needs}: leave it out.")
    if "tpu_metrics_debug" in args.debug:
        raise InputError("debug is tpu_metrics_debug, which needs a TPU: leave it out.")
    columns = [key for _, key, *_ in WORDINGS[script.task].columns]
    metrics = ("loss", "agreement") if script.label_free else ("loss", *columns)
    if args.metric_for_best_model is not None and args.metric_for_best_model.removeprefix("eval_") not in metrics:
        raise InputError(f"metric_for_best_model is {args.metric_for_best_model}: choose one of {', '.join(metrics)}.")


def _check_rows(script: DistillArguments) -> None:
    if script.validation_rows is not None and script.eval_split is not None:
        raise InputError("validation_rows and eval_split are two ways to evaluate: use one of them.")
    for name in ("train_rows", "validation_rows"):
        if (value := getattr(script, name)) is not None and (value < 1 or script.streaming):
            what = (
                "cannot be combined with --streaming: leave one out"
                if script.streaming
                else "use a number of at least 1"
            )
            raise InputError(f"{name} is {value}: {what}.")


def _check_augmentation(script: DistillArguments, args: GDKDConfig) -> None:
    if script.crop_padding and script.crop_scale is not None:
        raise InputError(
            "crop_padding and crop_scale are two ways to crop: use one of them (--crop_padding 0 turns it off)."
        )
    if script.auto_augment not in (None, *AUTO_AUGMENT):
        raise InputError(f"auto_augment is {script.auto_augment!r}: choose one of {', '.join(AUTO_AUGMENT)}.")
    if not 0 <= script.random_erasing <= 1:
        raise InputError(f"random_erasing is {script.random_erasing}: use a probability from 0 to 1.")
    smallest = {"crop_padding": 0, "cutout": 0, "mixup_alpha": 0, "cutmix_alpha": 0, "repeated_augmentation": 1}
    if script.cache_views is not None:
        smallest["cache_views"] = 1
    for name, least in smallest.items():
        if (value := getattr(script, name)) < least:
            raise InputError(f"{name} is {value}: use a number of at least {least}.")
    mixes, loss = script.mixup_alpha + script.cutmix_alpha > 0, args.build_loss()
    if mixes and loss is not None and not loss.takes_soft_labels:
        what, instead = _instead(args, lambda each: not each.takes_soft_labels)
        raise InputError(f"mixup and CutMix make soft labels, and {what} needs a single label: {instead}.")


def _check_streaming(script: DistillArguments, args: GDKDConfig) -> None:
    if args.max_steps <= 0:
        raise InputError("--streaming needs --max_steps, because the length of a stream is not known.")
    if script.mixup_alpha + script.cutmix_alpha > 0 or script.repeated_augmentation > 1:
        raise InputError(
            "mixup, CutMix and repeated augmentation draw from the whole data set: leave them or --streaming out."
        )
    for name in ("kd_warmup_epochs", "kd_skip_epochs", "lr_decay_epochs"):
        epochs = getattr(args, name) or 0
        if max(epochs if isinstance(epochs, list) else [epochs]) > 1:
            raise InputError(
                f"{name} is {epochs}: with --streaming all max_steps are one epoch, so use a fraction of it."
            )


def _check_label_free(script: DistillArguments, args: GDKDConfig) -> None:
    if script.teacher is None:
        raise InputError("--label_free needs a teacher: use --teacher and a distillation loss.")
    if len(script.teacher) > 1:
        raise InputError("--label_free takes the classes of one teacher: name one --teacher.")
    if script.label_map is not None:
        raise InputError("--label_free keeps the teacher's own classes: leave --label_map out.")
    if (args.ce_weight or 0) > 0:
        raise InputError(f"--label_free has no cross-entropy, but ce_weight is {args.ce_weight}: leave it out.")
    if (loss := args.build_loss()) is not None and loss.needs_labels:
        what, instead = _instead(args, lambda each: each.needs_labels)
        raise InputError(f"{what} needs labels, and --label_free has none: {instead}.")


def _instead(args: GDKDConfig, fails: Callable[[DistillationLoss], bool]) -> tuple[str, str]:
    """What goes by labels in the first of the losses that fails, and what to do without."""
    members = args.build_loss().members
    name = next(name for name, each in members.items() if fails(each))
    if members[name].gradient_scaling is not None:
        return "--gradient_scaling", "leave it out"
    if getattr(members[name], "class_k", None) is not None:
        return "--class_k", "use --threshold, or one --k"
    if isinstance(members[name], DKDLoss):
        return "dkd", "use --partition top1, or --loss gdkd"
    return name or args.loss, "use --loss gdkd"
