"""GDKDTrainer: a Trainer whose loss is ce_weight * CE + ramp * kd_weight * distillation loss."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import InputError
from ..losses import DistillationLoss
from ..models.kinds import kind_of
from ..models.segmentation import segment
from .auto_loss import resolve
from .balance import Balance, BalanceSteps, found_weights, total
from .batches import COLUMNS
from .cached_teacher import CachedTeacher, check_caches
from .config import GDKDConfig
from .distributed import check_engine, name_blocks, place_teacher
from .label_maps import AUXILIARY, StepSize, check_alike, ignore_index_of, logits_at, size_of_map, summed_ce, summed_ces
from .loader_trainer import pixels_of
from .loss_log import LossLog
from .loss_parts import LossParts, Sums, Terms, logged
from .teacher import Ensemble, Teacher, logits_of, num_labels_of
from .teacher_matching import check_apart, match_to_student, student_view, teachers_of, to_teacher
from .teacher_passes import TeacherTrainer
from .trainer_arguments import check_arguments


class GDKDTrainer(TeacherTrainer):
    """Distil `teacher_model` into `model`.

    One optimizer step is the same however its batch is split into micro-batches and processes, because every loss
    is summed over samples and divided by the number of samples of the whole step. Some things are of the micro-batch
    itself and differ: BatchNorm in the student; the losses dist, mlkd, luminet, rkd, crd, reviewkd, gdkd with gamma,
    fitnet with normalize, and any with gradient_scaling; and which tokens vitkd hides. Where the labels are maps
    (N, H, W), a class for each pixel, the pixels that have one are the samples: the cross-entropy is at their
    resolution, the distillation at the student's unless `resize_logits` is set.

    >>> import tempfile, torch
    >>> from hf_gdkd import GDKDConfig, GDKDTrainer
    >>> def classifier():
    ...     return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
    >>> images = [{"pixel_values": torch.randn(3, 8, 8), "labels": i % 10} for i in range(20)]
    >>> args = GDKDConfig(
    ...     output_dir=tempfile.mkdtemp(), loss="gdkd3", k=3, num_train_epochs=1, use_cpu=True, report_to="none",
    ...     save_strategy="no", disable_tqdm=True,
    ... )
    >>> trainer = GDKDTrainer(classifier(), classifier(), args, train_dataset=images)
    >>> output = trainer.train()
    Training data is read by the training process itself ...
    {'train_runtime': ...}
    >>> output.global_step
    3

    A teacher by name sees images as its own image processor says: through its own view in the batch
    (`teacher_pixel_values`), or else the student's pixels with its own mean and std. The student's are known from
    `train_dataset` (`hf_gdkd.data.Augmented`) or `processing_class`. Its classes are matched by name to those in the
    student's config.

    Logged beside `loss`, as means over the samples since the last log: `ce`, `kd` (the distillation loss before
    `kd_weight` and the ramp), `kd_ramp`, and the loss's unweighted parts (gdkd, gdkd3: `high`, `low_top`,
    `low_other`; dkd: `tckd`, `nckd`; dist: `inter`, `intra`; mlkd: `mlkd_kd`, `cc`, `bc`; nkd: `target`, `non_target`;
    rld: `scd`, `mcd`; rkd: `rkd_distance`, `rkd_angle`; vitkd: `mimic`, `generate`; of the others, their name), of
    several losses as `gdkd/high`, with `share/gdkd` of the gradient at the logits, and `weight/gdkd` where it is found.
    While their weight is 0 the teacher does not run, and they are missing.

    The losses on hidden features listen to the models' own forward passes (`hf_gdkd.training.feature_hooks`). Their
    `projections` train with the student and are kept in checkpoints, but are not part of it.

    The loss of an evaluation is the cross-entropy alone, without `ce_weight`, `class_weights` and label smoothing; the
    teacher does not run.

    Model, loss and options are those of each call of `train`: `model_init` and `hyperparameter_search` work.

    Args:
        model: the student: a transformers or timm model, or any module that maps `pixel_values` (N, 3, H, W) to
            logits (N, C), or to maps of them, (N, C, h, w).
        teacher_model: a model likewise, a `Teacher`, an `Ensemble` of them, or the name of one (Hub id, timm id,
            folder); None with `loss="ce"` only.
        args: a GDKDConfig.
        **kwargs: what `transformers.Trainer` takes, but for `compute_loss_func`.

    Raises:
        InputError: no teacher, classes that differ, a k that does not suit the number of classes, or an argument of
            Trainer that has no place here.
    """

    # compute_loss divides by the number of samples of the whole optimizer step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module | None = None,
        teacher_model: nn.Module | Teacher | Ensemble | str | None = None,
        args: GDKDConfig | None = None,
        **kwargs: Any,
    ) -> None:
        args = GDKDConfig() if args is None else args
        check_arguments(args, kwargs)
        args = args.own_copy()  # `auto` is resolved for this trainer alone
        smoothing, args.label_smoothing_factor = args.label_smoothing_factor, 0.0  # Trainer's own wants a config
        super().__init__(model, args, **kwargs)
        args.label_smoothing_factor = smoothing
        self.label_names = ["labels"]  # Trainer finds none when a plain module's forward takes none
        if isinstance(teacher_model, str):
            teacher_model = Teacher.load(teacher_model, kind=kind_of(self.model), dtype=args.teacher_dtype)
        self.teacher = to_teacher(teacher_model, self.model, args)
        self._to_match = [each for each in teachers_of(self.teacher) if not each.matched]
        for each in getattr(self.teacher, "teachers", [self.teacher]):
            if args.torch_compile and isinstance(each, Teacher | CachedTeacher):
                each.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
            if isinstance(each, CachedTeacher):
                self.add_callback(each)  # it writes what it recorded
        self._made_for: tuple | None = None
        self.add_callback(BalanceSteps(self))  # behind `finite`, which stops the run before a bad step counts
        self._follow()

    def _hp_search_setup(self, trial: Any) -> None:
        """As Trainer's, which calls it in every `train`, when model and arguments are those of the run."""
        super()._hp_search_setup(trial)
        self._follow()

    def _follow(self) -> None:
        """Make all that depends on the present model, arguments and training data."""
        check_engine(self.accelerator, self.args)
        name_blocks(self.accelerator, self.model)
        self._check_data()
        self._ignore_index = ignore_index_of(self.model)
        self._prepare_teacher()
        resolve(self)
        loss = self._make_loss()
        weighted = (self.args.loss, loss, self.args.kd_weight)
        made_for = (self.model, self.args.set_loss_options(), self.args.ce_weight, *weighted[::2])
        if self._made_for != made_for:
            self.distillation_loss, self.parts, self._made_for = loss, LossParts(loss, self.gradients), made_for
            self.balance = Balance.of(*weighted, self.args.ce_weight)
            self._weights = found_weights(*weighted) if loss else {}
            self._learn_beside()
            if self.args.torch_compile:
                self.parts.compile(backend=self.args.torch_compile_backend, mode=self.args.torch_compile_mode)
        if self.parts.deaf and self.train_dataset is not None:
            self._learn_beside(*self.parts.listen(self, self.teacher))
        self._loss_log, self._tried = LossLog(), False

    def _learn_beside(self, *losses: nn.Module) -> None:
        """Keep what these losses and the automatic weights learn in checkpoints."""
        balance = [] if self.balance is None else [self.balance.to(self.args.device)]
        self.replace_projections(*losses, *balance)

    def _make_loss(self) -> DistillationLoss | None:
        """The distillation loss of the present arguments, checked against the student's classes and the teacher."""
        loss = self.args.build_loss()
        if (self.teacher is None) != (loss is None):
            raise InputError(
                f"loss {self.args.loss} needs a teacher: pass teacher_model, or train without one with loss ce."
                if self.teacher is None
                else "loss ce takes no teacher: choose a distillation loss, or leave teacher_model out."
            )
        student, weights = num_labels_of(self.model), self.args.class_weights
        if weights and student not in (None, len(weights)):
            raise InputError(f"there are {len(weights)} class_weights and {student} classes: pass one for each class.")
        self.class_weights = weights and torch.tensor(weights, device=self.args.device)
        check_caches(self.teacher, loss, self.args.loss)
        if loss is not None and (num_labels := student or self.teacher.num_labels) is not None:
            loss.check_num_classes(num_labels)
        return loss and loss.to(self.args.device)

    def _prepare_teacher(self) -> None:
        """Match the teacher to the present student and data, and put it on the run's device."""
        if self.teacher is None:
            return
        check_apart(self.teacher, self.model)
        view = student_view(self.train_dataset, self.processing_class, self.model) if self._to_match else None
        for each in self._to_match:
            match_to_student(each, self.model, view)
        self.teacher = place_teacher(self.teacher, self.args)
        student, teacher = num_labels_of(self.model), self.teacher.num_labels
        if None not in (student, teacher) and student != teacher:
            raise InputError(
                f"the teacher has {teacher} classes and the student {student}, so their logits cannot be compared: "
                "choose a teacher fine-tuned on this data set, or set the student's num_labels."
            )

    def _set_signature_columns_if_needed(self) -> None:
        """What `remove_unused_columns` leaves: all that student, loss and teacher read."""
        self._signature_columns = [*COLUMNS, *getattr(self.teacher, "keys", ())]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: StepSize | Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar: the sum over this micro-batch's samples (or pixels) over those of the whole step."""
        pixels, labels = pixels_of(inputs), inputs.get("labels")
        if labels is None and (self.args.ce_weight > 0 or self.teacher is None or not model.training):
            raise InputError("the batch has no labels: use a data set with labels, or distil with --ce_weight 0.")
        step = StepSize.of(num_items_in_batch, inputs, len(pixels), self._ignore_index)
        own = step if num_items_in_batch is None else StepSize(len(pixels), [inputs], self._ignore_index)
        if not model.training:
            logits = logits_of(model(pixels))
            loss = summed_ce(logits, labels, self._ignore_index) / own.divisor(size_of_map(labels))
            return (loss, {"logits": logits}) if return_outputs else loss

        ramp = self.ramp()
        distils = self.teacher is not None and ramp * self.args.kd_factor > 0
        tries = self.teacher is not None and not self._tried  # so that what is wrong is said at once
        sums: dict[str, Sums] = {}
        with self.parts.collecting() if distils or tries else nullcontext():
            student_logits, auxiliary = self._run_student(model, pixels)
            check_alike(student_logits, labels)
            if self.args.resize_logits:  # once, for all of the loss
                student_logits = logits_at(student_logits, size_of_map(labels))
            balance = self.balance if distils else None
            logits = student_logits if balance is None else student_logits.detach().requires_grad_()
            if distils or tries:
                teacher_logits = self.ask_teacher(inputs)
                with nullcontext() if distils else torch.no_grad():
                    sums = self.parts.sums(
                        logits, teacher_logits, labels, ignore_index=self._ignore_index,
                        resize=self.args.resize_logits, only_right=self.args.ignore_incorrect,
                    )  # fmt: skip
                self._tried = True

        # Gradients (and logged losses) are averaged over processes, what is divided by counts all of them.
        processes, terms = self.accelerator.num_processes, []
        values: dict[str, Tensor] = {}
        scales: dict[str, float | Tensor] = dict.fromkeys(("ce", AUXILIARY), self.args.ce_weight)
        if labels is not None:
            at = size_of_map(labels)
            options = {"binary": self.args.binary_cross_entropy, "label_smoothing": self.args.label_smoothing_factor}
            found = summed_ces(logits, auxiliary, labels, self._ignore_index, weight=self.class_weights, **options)
            values = {name: ce * (processes / step.divisor(at)) for name, ce in found.items()}
            terms.append(({"ce": sum(found.values())}, own.labels(at)))
        if distils:
            weights = self._weights if balance is None else self._weights | balance.weights()
            for name, each in sums.items():
                values[name] = each.total * (processes / step.divisor(each.size))
                scales[name] = weights[name] * (ramp * self.args.kd_factor)
            terms += logged(self.args.loss, sums, weights, step, own)
        if self.is_in_train and terms:
            self._remember(terms, ramp, inputs.get("sample_id"))
        loss = total(values, scales, balance, student_logits, logits, self.parts)
        return (loss, {"logits": student_logits}) if return_outputs else loss

    def _run_student(self, model: nn.Module, pixels: Tensor) -> tuple[Tensor, list[tuple[Tensor, float]]]:
        """The logits, and those of an auxiliary head with their weight in the cross-entropy."""
        if getattr(self.model, "auxiliary_head", None) is None or not isinstance(self.model, PreTrainedModel):
            return logits_of(model(pixels)), []
        return segment(model, pixels)

    def _remember(self, terms: Terms, ramp: float, rows: Tensor | None) -> None:
        """Add this micro-batch's terms to the running sums, on the device, without a synchronisation."""
        every: dict[str, Tensor] = {}
        for named, number in terms:
            self._loss_log.add(list(named), torch.stack([term.detach() for term in named.values()]), number)
            every |= named
        self.finite.note(list(every), torch.stack([term.detach() for term in every.values()]), rows)
        self._ramp = ramp

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss, logits and labels of a batch; loss and labels are None where it has no labels."""
        inputs = self._prepare_inputs(inputs)
        pixels, labels, loss = pixels_of(inputs), inputs.get("labels"), None
        with torch.no_grad():
            if labels is None:
                logits = logits_of(model(pixels))
            else:
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
                logits = outputs["logits"]
                if (preprocess := getattr(self.compute_metrics, "preprocess", None)) is not None:
                    logits, labels = preprocess(logits, labels), labels.new_zeros(len(labels))  # all that is gathered
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's, with the parts of the loss beside the total."""
        if "loss" in logs and (means := self._loss_log.take(self.accelerator)):
            logs.update(means)
            logs.update(self.balance.take(self.args.loss) if self.balance is not None else {})
            if self.teacher is not None:
                logs["kd_ramp"] = self._ramp
        super().log(logs, start_time)
