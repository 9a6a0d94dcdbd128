"""Whether a checkpoint is complete, and what is said when one cannot be written."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_training import CLASSES, Plain, distil, make, weights
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_gdkd.errors import TrainingError
from hf_gdkd.training.checkpoints import is_complete, is_incomplete, last_complete_checkpoint, saving, write_contents


def checkpoint(folder, step, state=True):
    path = folder / f"checkpoint-{step}"
    (path / "shards").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "shards/0.distcp"):
        (path / name).write_text("a hundred bytes" * step)
    write_contents(path)
    if state:
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return str(path)


NAMES = ["trainer_state.json", "contents.json", "model.safetensors", "optimizer.pt", "shards/0.distcp"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tear", [Path.unlink, lambda path: path.write_bytes(b""), lambda path: cut(path)])
def test_a_torn_checkpoint_is_passed_over(tmp_path, name, tear):
    """Whichever file is missing, empty or short."""
    complete, torn = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert is_complete(torn)
    tear(Path(torn, name))
    assert last_complete_checkpoint(tmp_path) == complete and not is_incomplete(complete)
    assert is_incomplete(torn) == (name != "contents.json" or Path(torn, name).exists())  # else weights alone, perhaps


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def test_weights_alone_are_neither_complete_nor_incomplete(tmp_path):
    """What --save_only_model saves: nothing to resume from, and nothing to delete."""
    path = Path(checkpoint(tmp_path, 9))
    (path / "contents.json").unlink()
    assert not is_complete(path) and not is_incomplete(path) and last_complete_checkpoint(tmp_path) is None


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]
OTHER = [
    (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
    (SafetensorError("I/O error: Read-only file system (os error 30)"), "Read-only file system"),
    (RuntimeError("Some tensors share memory.\nA list follows."), "Some tensors share memory"),
]


@pytest.mark.parametrize("error, said", [(error, None) for error in FULL] + OTHER)
@pytest.mark.parametrize("last", [None, 9])
def test_what_cannot_be_written_is_one_sentence(tmp_path, error, said, last):
    """It speaks of room when the disk or the quota is full, and then alone."""
    complete = last and checkpoint(tmp_path, last)
    with pytest.raises(TrainingError) as caught, saving(str(tmp_path / "checkpoint-12"), str(tmp_path)):
        raise error
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'checkpoint-12'} could not be written: ") and "\n" not in text
    assert ("MB free on its disk" in text) == ("make room" in text) == (said is None)
    assert (f"written: {said}. " in text) == (said is not None)
    assert (f"{complete} is complete: " if complete else "No checkpoint is complete: ") in text
    assert caught.value.__cause__ is error


def test_torch_does_not_say_why_it_could_not_write(tmp_path, monkeypatch):
    """Its writer's error has no reason: another file is tried."""
    error = RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
    with pytest.raises(TrainingError, match="unexpected pos"), saving("x", str(tmp_path)):
        raise error
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **options: (_ for _ in ()).throw(FULL[0]))
    with pytest.raises(TrainingError, match=r"No space left on device, with .* MB free"), saving("x", str(tmp_path)):
        raise error


class Tied(nn.Module):
    """Three modules share a weight, and two names one module."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))
        self.second.weight = self.third.weight = self.first.weight
        self.head = self.last = Plain()

    def forward(self, pixel_values):
        return self.last(self.third(self.second(self.first(pixel_values))))


class TiedConfig(PretrainedConfig):
    model_type = "tied_for_a_test"


class TiedTransformer(PreTrainedModel):
    config_class = TiedConfig

    def __init__(self, config):
        super().__init__(config)
        self.body = Tied()
        self.post_init()

    def forward(self, pixel_values):
        return self.body(pixel_values)


@pytest.mark.parametrize("build", [Tied, lambda: TiedTransformer(TiedConfig(num_labels=CLASSES))])
def test_shared_weights_are_saved(tmp_path, build):
    """As in coat_lite_tiny of timm; the file loads with every name, and a resumed run is exact."""
    options = {"loss": "ce", "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    straight = distil(tmp_path / "a", make(build), **options)
    straight.save_model()
    saved = load_file(tmp_path / "a/model.safetensors")
    assert set(saved) == set(straight.model.state_dict())
    again = make(build, 3)
    again.load_state_dict(saved)
    assert torch.equal(torch.cat([p.flatten() for p in again.parameters()]), weights(straight))
    shutil.rmtree(tmp_path / "a/checkpoint-6")
    resumed = distil(tmp_path / "a", make(build, 4), resume=True, **options)
    assert torch.equal(weights(resumed), weights(straight))
