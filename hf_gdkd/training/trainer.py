"""GDKDTrainer: a Trainer whose loss is ce_weight * CE + ramp * kd_weight * distillation loss."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput, has_length

from ..data.streaming import AugmentedStream
from ..errors import InputError
from ..losses import FeatureLoss
from ..models.loading import load_teacher
from .checkpoint_trainer import CheckpointTrainer
from .config import GDKDConfig
from .distributed import check_engine, name_blocks, place_teacher
from .feature_distillation import FeatureDistillation
from .teacher import Ensemble, Teacher, logits_of


class GDKDTrainer(CheckpointTrainer):
    """Distil `teacher_model` into `model`.

    One optimizer step is the same however its batch is split into micro-batches and processes, because every loss
    is summed over samples and divided by the number of samples of the whole step. Two things compute over the
    micro-batch itself and differ: BatchNorm in the student, and the losses dist, mlkd, rkd, crd, reviewkd, and gdkd
    with gamma.

    Logged beside `loss`, as means over the samples since the last log: `ce`, `kd` (the distillation loss before
    `kd_weight` and the ramp), `kd_ramp`, and the loss's unweighted parts (gdkd, gdkd3: `high`, `low_top`,
    `low_other`; dkd: `tckd`, `nckd`; dist: `inter`, `intra`; mlkd: `mlkd_kd`, `cc`, `bc`; `fitnet`, `at`, `crd`,
    `reviewkd`; rkd: `rkd_distance`, `rkd_angle`).

    The losses on hidden features listen to the models' own forward passes (`hf_gdkd.training.feature_hooks`). Their
    `projections` train with the student and are kept in checkpoints, but are no part of it.

    The loss of an evaluation is the cross-entropy alone, unweighted; the teacher does not run.

    Args:
        model: the student: a transformers or timm image classifier, or any module that maps `pixel_values`
            (N, 3, H, W) to logits (N, C).
        teacher_model: a model likewise, a `Teacher`, an `Ensemble` of them, or the name of one (Hub id, timm id,
            folder); None with `loss="ce"` only.
        args: a GDKDConfig.
        **kwargs: what `transformers.Trainer` takes.

    Raises:
        InputError: no teacher, class counts that differ, or a k that does not suit the number of classes.
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
        args = args or GDKDConfig()
        self.distillation_loss = args.build_loss()
        if (teacher_model is None) != (self.distillation_loss is None):
            raise InputError(
                f"loss {args.loss} needs a teacher: give teacher_model, or train without one with loss ce."
                if teacher_model is None
                else "loss ce takes no teacher: choose a distillation loss, or leave teacher_model out."
            )
        if isinstance(teacher_model, str):
            teacher_model = load_teacher(teacher_model)
        if isinstance(teacher_model, nn.Module):
            teacher_model = Teacher(teacher_model, dtype=args.teacher_dtype)
        smoothing, args.label_smoothing_factor = args.label_smoothing_factor, 0.0  # Trainer's own wants a config
        super().__init__(model, args, **kwargs)
        args.label_smoothing_factor = smoothing
        check_engine(self.accelerator, args)
        name_blocks(self.accelerator, self.model)
        self.teacher = teacher_model and place_teacher(teacher_model, args)
        num_labels = getattr(getattr(self.model, "config", None), "num_labels", None)
        if self.teacher is not None:
            self._check_num_labels(num_labels)
        if args.class_weights and num_labels not in (None, len(args.class_weights)):
            raise InputError(
                f"there are {len(args.class_weights)} class_weights and {num_labels} classes: give one each."
            )
        if has_length(self.train_dataset) and 0 < len(self.train_dataset) < args.world_size:
            raise InputError(
                f"there are {args.world_size} processes and {len(self.train_dataset)} training images: start fewer "
                "processes."
            )
        self.class_weights = args.class_weights and torch.tensor(args.class_weights, device=args.device)
        self._parts = self.distillation_loss and self.distillation_loss.parts
        self.features: FeatureDistillation | None = None
        if isinstance(self.distillation_loss, FeatureLoss) and self.train_dataset is not None:
            self.features = FeatureDistillation.of_trainer(self.distillation_loss, self, self.teacher)
            self._parts = self.features.parts
            self.projections.append(self.distillation_loss)
        if args.torch_compile and self.teacher is not None:
            options = {"backend": args.torch_compile_backend, "mode": args.torch_compile_mode}
            self.teacher.compile(**options)
            self._parts = torch.compile(self._parts, **options)
        self.label_names = ["labels"]  # Trainer finds none when a plain module's forward takes none
        self._epochs = _Epochs(self.train_dataset)
        self.add_callback(self._epochs)
        self._sums: Tensor | None = None

    def _check_num_labels(self, student: int | None) -> None:
        teacher = self.teacher.num_labels
        if None not in (student, teacher) and student != teacher:
            raise InputError(
                f"the teacher has {teacher} classes and the student {student}, so their logits cannot be compared: "
                "choose a teacher fine-tuned on this data set, or set the student's num_labels."
            )
        if (num_labels := student or teacher) is not None:
            self.distillation_loss.check_num_classes(num_labels)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `CheckpointTrainer.train`."""
        self._sums = None  # what an earlier call left unlogged is not part of this one
        with self.features.collecting() if self.features is not None else nullcontext():
            return super().train(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """As Trainer's, unless the data set has a sampler of its own, as `Augmented` has for repeated augmentation."""
        return getattr(self.train_dataset, "sampler", None) or super()._get_train_sampler(train_dataset)

    def _make_train_dataloader(self) -> DataLoader:
        """As Trainer's, or a stream's own; the seed of its workers is the epoch's, and no number of the training's."""
        if isinstance(self.train_dataset, AugmentedStream):
            loader = self.train_dataset.loader(self.args, self._train_batch_size, self.data_collator)
        else:
            loader = super()._make_train_dataloader()
        loader.base_dataloader.generator = self._epochs.generator
        return loader

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> tuple:
        """As Trainer's; the optimizer steps of an epoch are kept, for the ramp."""
        values = super().set_initial_training_values(*args, **kwargs)
        self.steps_per_epoch = values[1]
        return values

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """As Trainer's, or constant but for the steps down at `lr_decay_epochs`."""
        if self.lr_scheduler is None and self.args.lr_decay_epochs:
            milestones = [round(epoch * self.steps_per_epoch) for epoch in self.args.lr_decay_epochs]
            self.lr_scheduler = MultiStepLR(optimizer or self.optimizer, milestones, self.args.lr_decay_rate)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As Trainer's, or with `decay_all_weights` the names of all parameters."""
        if self.args.decay_all_weights:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar: the sum over this micro-batch's samples over the samples of the whole step."""
        labels = inputs.get("labels")
        student_logits = logits_of(model(inputs["pixel_values"]))
        terms: dict[str, Tensor] = {}
        size = len(student_logits)
        if labels is not None:
            smoothing = self.args.label_smoothing_factor
            terms["ce"] = F.cross_entropy(
                student_logits.float(), labels, self.class_weights, reduction="sum", label_smoothing=smoothing
            )
        elif self.args.ce_weight > 0 or self.teacher is None:
            raise InputError("the batch has no labels: give a data set with labels, or distil with --ce_weight 0.")
        if not model.training:
            loss = terms["ce"] / size if terms else student_logits.new_zeros(())
            return (loss, {"logits": student_logits}) if return_outputs else loss

        # Gradients (and logged losses) are averaged over processes, the samples counted over all of them.
        scale = self.accelerator.num_processes / (size if num_items_in_batch is None else num_items_in_batch)
        loss = terms["ce"] * (self.args.ce_weight * scale) if terms else 0.0
        # state.epoch counts micro-batches: where the last is ragged, it depends on how the steps are split.
        ramp = self.args.ramp(self.state.global_step / self.steps_per_epoch)
        if self.teacher is not None:
            teacher_logits = self.teacher(inputs)
            parts = self._parts(student_logits, teacher_logits, labels)
            terms["kd"] = _sum_over_samples(self.distillation_loss.weigh(parts), size)
            if list(parts) != ["kd"]:
                for name, part in parts.items():
                    name = f"{self.args.loss}_kd" if name == "kd" else name
                    terms[name] = _sum_over_samples(part.detach(), size)
            loss = loss + terms["kd"] * (ramp * self.args.kd_weight * scale)
        self._remember(terms, size, ramp, inputs.get("sample_id"))
        return (loss, {"logits": student_logits}) if return_outputs else loss

    def _remember(self, terms: dict[str, Tensor], size: int, ramp: float, rows: Tensor | None) -> None:
        """Add this micro-batch's terms to the running sums, on the device, without a synchronisation."""
        sums = torch.stack([term.detach() for term in terms.values()])
        self.finite.note(list(terms), sums, rows)
        if self._sums is None:
            self._sums, self._sum_names, self._samples = torch.zeros_like(sums), list(terms), 0
        self._sums += sums
        self._samples += size
        self._ramp = ramp

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's, with the parts of the loss beside the total."""
        if "loss" in logs and self._sums is not None:
            *sums, samples = self.accelerator.reduce(
                torch.cat([self._sums, self._sums.new_tensor([self._samples])]), "sum"
            ).tolist()
            logs.update({name: total / samples for name, total in zip(self._sum_names, sums, strict=True)})
            if self.teacher is not None:
                logs["kd_ramp"] = self._ramp
            self._sums = None
        super().log(logs, start_time)


class _Epochs(TrainerCallback):
    """Tells the training data the epoch, also where Accelerate does not: on several processes.

    The seed of the loader's workers comes from a generator that each epoch begins anew. A loader would draw it from
    the training's random numbers, but, where workers persist, only as often as it starts them: once more in a run
    that is resumed.
    """

    def __init__(self, rows: object) -> None:
        self.rows, self.generator = rows, torch.Generator()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        epoch = int(state.epoch or 0)
        self.generator.manual_seed(args.seed + epoch)
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)
        if hasattr(self.rows, "skip_batches"):  # a stream, whose steps are all one epoch
            past = 0 if args.ignore_data_skip else state.global_step * args.gradient_accumulation_steps
            self.rows.skip_batches(past)


def _sum_over_samples(term: Tensor, size: int) -> Tensor:
    """One value a sample is summed; one value a batch counts for each of its samples."""
    return term.sum() if term.ndim else term * size
