"""Between two logs, no step makes the host wait for the GPU.

python -m pytest tests/gpu/test_step_waits.py -m gpu -v        # names every place that does
"""

import traceback
import warnings

import pytest
import torch
from tiny_training import SAMPLES, distil, make, vit
from transformers import TrainerCallback

from hf_gdkd import GDKDTrainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
CASES = {
    "gdkd": {"loss": "gdkd"},
    "gdkd3 in bf16": {"loss": "gdkd3", "bf16": True},
    "clipped, with a moving average": {"loss": "kd", "max_grad_norm": 1.0, "ema_decay": 0.9},
    "accumulated": {"loss": "gdkd", "per_device_train_batch_size": 3, "gradient_accumulation_steps": 4},
    "automatic weights": {"loss": "gdkd+dist", "kd_weight": "auto"},
    "features": {"loss": "gdkd+fitnet"},
    "sgd": {"loss": "ce", "optim": "sgd", "optim_args": "momentum=0.9"},
}


class Listens(TrainerCallback):
    """Notes every place in which torch waits for the GPU, from the third step to the second last."""

    def __init__(self):
        self.places = {}

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            torch.cuda.set_sync_debug_mode("warn")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps - 1:
            torch.cuda.set_sync_debug_mode("default")

    def note(self, message, *args, **kwargs):
        if "synchronizing" in str(message):
            stack = [f"{frame.filename}:{frame.lineno} {frame.line}" for frame in traceback.extract_stack()[:-1]]
            ours = [frame for frame in stack if "/hf_gdkd/" in frame or "/transformers/" in frame]
            self.places["\n  ".join(ours[-3:] + stack[-1:])] = None


@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_for_nothing(case, tmp_path):
    options = {"optim": "adamw_torch_fused", "learning_rate": 1e-3, "num_train_epochs": 3, "use_cpu": False}
    options |= {"logging_strategy": "no", "trainer": GDKDTrainer, "callbacks": [listens := Listens()]} | CASES[case]
    teacher = None if options["loss"] == "ce" else make(vit, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = listens.note
        try:
            trainer = distil(tmp_path, make(vit), teacher=teacher, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.global_step >= 3 * SAMPLES // 12
    assert not listens.places, "\n".join(["torch waits for the GPU in", *listens.places])
