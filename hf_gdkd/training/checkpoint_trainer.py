"""A Trainer for runs of days: whole checkpoints, exact resumption, and a sentence where something ends it."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub import HfApi
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, HubStrategy, TrainOutput
from transformers.utils import PushInProgress

from ..errors import InputError, TrainingError, first_sentence
from ..hub_client import HUB_ERRORS, hub_reason, retried
from .checkpoints import is_whole, last_whole_checkpoint, remove_from, saving, write_contents
from .dataloader_workers import DeadWorker, heard, release
from .ema import EMA, check_resumable
from .feature_distillation import ProjectionsTrainer

# What is pushed of a checkpoint.
MODEL_FILES = ["model*.safetensors", "*.safetensors.index.json", "config.json", "preprocessor_config.json"]


class CheckpointTrainer(ProjectionsTrainer):
    """What GDKDTrainer does for the student's safety; it knows nothing of teachers and losses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ema = EMA()
        self.add_callback(self.ema)
        self._saved_at: int | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As Trainer's; True resumes from the last whole checkpoint, and begins where there is none."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
        self._saved_at = None
        self.ema.reset()
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        release()
        return output

    def _save_state(self) -> str:
        self._save_checkpoint(self.model_wrapped, trial=None)
        self.accelerator.wait_for_everyone()  # the first process that ends takes the others with it
        return os.path.join(self.args.output_dir, f"checkpoint-{self.state.global_step}")

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As Trainer's, of the moving average where there is one; it draws none of the training's random numbers.

        A run that resumes from a checkpoint of an epoch's last step does not repeat the evaluation that followed it.

        Raises:
            TrainingError: a DataLoader worker died or hung.
        """
        try:
            with heard(), torch.random.fork_rng(devices=[]), self.ema.in_place():
                return super().evaluation_loop(*args, **kwargs)
        except DeadWorker as error:
            self._end(str(error), save=self.is_in_train and self.args.world_size == 1)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """As Trainer's, with a limit on the time that a worker may take."""
        loader = super()._get_dataloader(*args, **kwargs)
        if loader.num_workers > 0:
            getattr(loader, "base_dataloader", loader).timeout = self.args.dataloader_timeout
        return loader

    def _end(self, dead: str, *, save: bool) -> NoReturn:
        saved = f" The state after step {self.state.global_step} is in {self._save_state()}." if save else ""
        raise TrainingError(
            f"{dead}{saved} Go on with --resume_from_checkpoint last, and with fewer --dataloader_num_workers where "
            "memory is short."
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's.

        Raises:
            TrainingError: the student could not be written.
        """
        with saving(output_dir or self.args.output_dir, self.args.output_dir):
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As Trainer's; never over the checkpoint that this run wrote last or goes on from.

        Raises:
            TrainingError: the checkpoint could not be written; the one before it is whole.
        """
        step, folder = self.state.global_step, self._get_output_dir(trial)
        checkpoint = os.path.join(folder, f"{PREFIX_CHECKPOINT_DIR}-{step}")
        if step == self._saved_at or (step == self._initial_global_step and is_whole(checkpoint)):
            return
        if self.args.should_save:
            remove_from(step, folder)
        self.accelerator.wait_for_everyone()
        with saving(checkpoint, folder):
            super()._save_checkpoint(model, trial)
        self._saved_at = step

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As Trainer's, and the raw weights where the model of the checkpoint is their moving average."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self.ema.save(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        """As Trainer's; then, with the files of all processes there, contents.json. trainer_state.json follows."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_contents(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As Trainer's, of the moving average, and without `training_args.bin`: a pickle that holds the Hub token."""
        with self.ema.in_place():
            super()._save(output_dir, state_dict)
        folder = output_dir or self.args.output_dir
        if self.args.should_save:
            os.remove(os.path.join(folder, TRAINING_ARGS_NAME))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As Trainer's, unless a card is there already, such as the one that the scripts write."""
        if not os.path.isfile(os.path.join(self.args.output_dir, "README.md")):
            super().create_model_card(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        check_resumable(resume_from_checkpoint, self.args.ema_decay)
        self._load_student(resume_from_checkpoint, model)
        if self.args.ema_decay is not None:
            self.ema.load(resume_from_checkpoint, self.model)

    def _load_student(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """As Trainer's `_load_from_checkpoint`, which silently skips what `save_pretrained` renames, as in a ViT."""
        student = self.model if model is None else model
        if not isinstance(student, PreTrainedModel) or self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved, info = type(student).from_pretrained(
            resume_from_checkpoint, config=student.config, dtype=student.dtype, output_loading_info=True
        )
        if info["missing_keys"]:
            raise InputError(
                f"checkpoint {resume_from_checkpoint} is of another model: resume with the same --student."
            )
        student.load_state_dict(saved.state_dict())

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """As Trainer's; a repository that cannot be written to is said before training."""
        name = self.args.hub_model_id or os.path.basename(os.path.abspath(self.args.output_dir))
        try:
            retried(partial(super().init_hf_repo, *args, **kwargs))
        except HUB_ERRORS as error:
            reason = hub_reason(error, name, kind="upload") or first_sentence(error)
            raise InputError(f"cannot write to {name} on the Hub: {reason}") from error

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As Trainer's, but the model and its image processor alone: no pickle, and no card of an earlier run."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            if not self.args.hub_always_push:
                return
            self._finish_current_push()
        for pattern in MODEL_FILES:  # copied, as the checkpoint may be removed before it is uploaded
            for path in Path(checkpoint_folder).glob(pattern):
                shutil.copy(path, self.args.output_dir)
        job = HfApi(token=self.args.hub_token).upload_folder(
            repo_id=self.hub_model_id, folder_path=self.args.output_dir, revision=self.args.hub_revision,
            allow_patterns=MODEL_FILES, ignore_patterns=["*/*"], run_as_future=True,
            commit_message=f"Training in progress, step {self.state.global_step}",
        )  # fmt: skip
        self.push_in_progress = PushInProgress([job])

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        self._load_student(self.state.best_model_checkpoint)
        if self.ema.training:
            self.ema.adopt(self.model)
