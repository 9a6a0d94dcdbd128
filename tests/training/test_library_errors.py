"""What Trainer, Accelerate and torch refuse before the first step is one sentence; no run has zero steps."""

import pytest
import torch
from tiny_training import SAMPLES, SIZE, Normed, config, distil, make, make_data, vit
from torch import nn
from transformers import TrainerCallback

from hf_gdkd import GDKDTrainer
from hf_gdkd.errors import InputError


@pytest.mark.parametrize("options, said", [
    ({"optim": "adamw_bnb_8bit"}, "optim adamw_bnb_8bit cannot be used here: You need to install `bitsandbytes`"),
    ({"optim": "galore_adamw"}, "optim galore_adamw cannot be used here: You need to install `galore_torch`"),
    ({"optim_args": "momentum"}, "optim sgd, optim_args momentum cannot be used here: not enough values"),
    ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_type warmup_stable_decay cannot be used here: "),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"foo": 1}}, "{'foo': 1} cannot be used here: "),
    ({"report_to": "wandb"}, "report_to wandb cannot be used here: WandbCallback requires wandb"),
    ({"report_to": "nonsense"}, "report_to nonsense cannot be used here: nonsense is not supported"),
    ({"use_liger_kernel": True}, "use_liger_kernel True cannot be used here: "),
    ({"torch_compile_backend": "nonsense"}, "torch_compile_backend nonsense cannot be used here: 'NONSENSE' is not"),
    ({"bf16": True, "fp16": True}, "bf16 True, fp16 True cannot be used here: At most one"),
    ({"gradient_checkpointing": True}, "gradient_checkpointing True cannot be used here: "),
    ({"dataloader_prefetch_factor": 2, "dataloader_num_workers": 0}, "dataloader_prefetch_factor"),
    ({"load_best_model_at_end": True, "eval_strategy": "no", "save_strategy": "epoch"}, "load_best_model_at_end"),
])  # fmt: skip
def test_one_sentence_with_the_name(options, said, tmp_path):
    with pytest.raises(InputError) as caught:
        distil(tmp_path, loss="ce", **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None  # for Python users


class Broken(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        raise ZeroDivisionError("a fault of the user's own")


class BrokenLater(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise ZeroDivisionError("a fault of the user's own")


@pytest.mark.parametrize("callback", [Broken, BrokenLater])
def test_other_errors_stay_what_they_are(callback, tmp_path):
    with pytest.raises(ZeroDivisionError):
        distil(tmp_path, loss="ce", callbacks=[callback()], save_on_each_node=True)


def test_a_run_of_zero_steps_is_refused(tmp_path):
    with pytest.raises(InputError, match="there are 31 training images, and dataloader_drop_last leaves a batch of"):
        distil(tmp_path, loss="ce", per_device_train_batch_size=SAMPLES + 1, dataloader_drop_last=True)


def test_an_evaluation_leaves_no_image_out(tmp_path):
    """dataloader_drop_last is about training; 11 images in batches of 5."""
    args = config(tmp_path, loss="ce", dataloader_drop_last=True)
    trainer = GDKDTrainer(make(vit), None, args, train_dataset=make_data(), eval_dataset=make_data(11))
    assert len(trainer.predict(make_data(11)).predictions) == 11
    assert sum(len(batch["labels"]) for batch in trainer.get_eval_dataloader()) == 11
    assert [len(batch["labels"]) for batch in trainer.get_train_dataloader()] == [12, 12] and args.dataloader_drop_last


class Pooled(nn.Module):
    """BatchNorm after pooling, as a head of many networks has it: one image has one value per channel."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 7)

    def forward(self, pixel_values):
        return self.head(self.norm(pixel_values.mean((2, 3))))


def test_a_last_batch_of_one_image_is_refused_where_batchnorm_cannot_take_it(tmp_path):
    """Before training; BatchNorm over the pixels of one image is fine, and so is another batch size."""
    assert SAMPLES % 6 == 1 and SIZE > 1
    with pytest.raises(InputError, match="has 1 of the 31 training images, which BatchNorm cannot normalise"):
        distil(tmp_path, Pooled(), loss="ce", per_device_train_batch_size=6)
    for student, options in ((Normed(), {}), (Pooled(), {"dataloader_drop_last": True})):
        distil(tmp_path, student, loss="ce", per_device_train_batch_size=6, **options)
    before = torch.get_rng_state()
    trainer = GDKDTrainer(Normed(), None, config(tmp_path, loss="ce", per_device_train_batch_size=6),
                          train_dataset=make_data())  # fmt: skip
    torch.set_rng_state(before)
    trainer._check_single_image()
    assert torch.equal(torch.get_rng_state(), before) and trainer.model.norm.num_batches_tracked == 0
