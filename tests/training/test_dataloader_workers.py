"""A DataLoader worker that dies or hangs ends the run with a sentence and a complete checkpoint, never with a hang."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from tiny_training import CLASSES, SIZE, config, distil, make, make_data, weights
from torch import nn
from torch.utils.data import Dataset, get_worker_info
from transformers import TrainerCallback

from hf_gdkd import GDKDTrainer
from hf_gdkd.errors import InputError, TrainingError
from hf_gdkd.training.dataloader_workers import DataWait, default_workers

pytestmark = pytest.mark.timeout(120)
KILLED = r"^DataLoader worker .*(killed by signal: Killed|exited unexpectedly)\."  # as soon as it is seen
STEPS = 32  # two epochs of 31 samples
OPTIONS = {
    **{"loss": "ce", "num_train_epochs": 2, "per_device_train_batch_size": 2, "optim": "adamw_torch"},
    **{"trainer": GDKDTrainer, "dataloader_num_workers": 2, "dataloader_timeout": 2, "learning_rate": 0.01},
}


def student():
    """Dropout, a shuffled order, Adam: a state that is not whole, or random numbers astray, would show."""
    return make(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * SIZE * SIZE, CLASSES)))


class Faulty(Dataset):
    """Reading the row `fatal` (None: any row) in this epoch is the end of the worker that does it."""

    def __init__(self, end, epoch=0, fatal=None):
        self.rows, self.end, self.fatal, self.epoch, self.now = make_data(), end, fatal, epoch, 0

    def set_epoch(self, epoch):
        self.now = epoch

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        if self.now == self.epoch and self.fatal in (None, row) and get_worker_info() is not None:
            self.end()
        return self.rows[row]


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def hung():
    time.sleep(1000)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run whose workers live."""
    return distil(tmp_path_factory.mktemp("whole"), student(), **OPTIONS)


def checkpoint_of(error):
    text = str(error.value)
    assert "\n" not in text and text.endswith("if memory is short.")
    return text.split(" is in ")[1].split(". Resume")[0]


def assert_goes_on(checkpoint, folder, whole, **options):
    """The resumed run is, to the last bit, the run whose workers live."""
    resumed = distil(folder, student(), resume=checkpoint, **OPTIONS | options)
    assert resumed.state.global_step == whole.state.global_step == STEPS
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize(
    "end, said, epoch, row, steps",
    [
        (killed, KILLED, 0, 8, range(8, 14)),
        (killed, KILLED, 1, None, [16]),  # both workers, and the state is between two epochs
        (hung, r"^DataLoader timed out after 2 seconds\.", 0, 8, [13]),
    ],
    ids=["killed", "killed between epochs", "hung"],
)
def test_the_run_ends_and_goes_on_exactly(tmp_path, whole, end, said, epoch, row, steps):
    with pytest.raises(TrainingError, match=said) as caught:
        distil(tmp_path, student(), data=Faulty(end, epoch, row), **OPTIONS)
    checkpoint = checkpoint_of(caught)
    assert int(checkpoint.split("-")[-1]) in steps
    assert_goes_on(checkpoint, tmp_path, whole)


class Seeded(Dataset):
    """Notes the seed of the worker that reads it, by epoch."""

    def __init__(self):
        self.rows, self.now = make_data(12), 0
        self.seeds = torch.zeros(2, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch):
        self.now = epoch

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        self.seeds[self.now] = get_worker_info().seed
        return self.rows[row]


def test_each_epoch_has_worker_seeds_of_its_own(tmp_path, monkeypatch):
    """In a resumed run too; Accelerate, on several processes, tells the epoch to the sampler alone."""
    monkeypatch.setattr("accelerate.data_loader.DataLoaderShard.set_epoch", lambda loader, epoch: None)
    options = OPTIONS | {"per_device_train_batch_size": 12, "dataloader_num_workers": 1, "save_strategy": "epoch"}
    straight, resumed = Seeded(), Seeded()
    distil(tmp_path / "a", data=straight, **options)
    distil(tmp_path / "b", data=resumed, resume=str(tmp_path / "a/checkpoint-1"), **options)
    first, second = straight.seeds.tolist()
    assert 0 != first != second != 0
    assert resumed.seeds.tolist() == [0, second]


class Killer(TrainerCallback):
    """Kills the workers between the gradients and the update of step 4."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 3:
            for worker in multiprocessing.active_children():
                worker.kill()
            time.sleep(0.2)  # the signal has come


def test_a_step_that_has_begun_is_finished_first(tmp_path, whole):
    with pytest.raises(TrainingError, match=r"The state after step 4 is in") as caught:
        distil(tmp_path, student(), callbacks=[Killer()], **OPTIONS)
    assert_goes_on(checkpoint_of(caught), tmp_path, whole)


def test_a_worker_of_the_evaluation(tmp_path):
    class Evaluated(GDKDTrainer):
        def get_eval_dataloader(self, eval_dataset=None):
            return super().get_eval_dataloader(Faulty(killed))

    often = {"eval_strategy": "steps", "eval_steps": 5}
    with pytest.raises(TrainingError, match=rf"{KILLED} The state after step 5 is in") as caught:
        distil(tmp_path, student(), **OPTIONS | often | {"trainer": Evaluated})
    whole = distil(tmp_path / "whole", student(), **OPTIONS | often)
    assert_goes_on(checkpoint_of(caught), tmp_path, whole, **often)


def test_torch_raises_as_ever_after_training(tmp_path, whole):
    """Outside of training, the handler is torch's own again."""
    assert "torch" in signal.getsignal(signal.SIGCHLD).__module__
    args = config(tmp_path, "ce", dataloader_num_workers=2)
    trainer = GDKDTrainer(student(), None, args, eval_dataset=Faulty(killed))
    with pytest.raises(TrainingError, match=rf"{KILLED} Resume"):
        trainer.evaluate()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_torch_raises_as_ever_after_an_error(tmp_path):
    """Whatever ends the training, the handler is the one that was there before."""
    before = signal.getsignal(signal.SIGCHLD)

    class Fails(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(tmp_path, student(), callbacks=[Fails()], **OPTIONS)
    assert signal.getsignal(signal.SIGCHLD).__module__ == "torch.utils.data._utils.signal_handling" or (
        signal.getsignal(signal.SIGCHLD) is before
    )


class Images(Dataset):
    """So many images, made when they are read, at this size."""

    def __init__(self, samples, size=None, crop=None):
        self.samples = samples
        if size is not None:
            self.transform = SimpleNamespace(view=SimpleNamespace(size=(size, size)), size=crop)

    def __len__(self):
        return self.samples


@pytest.mark.parametrize(
    "rows, cores, processes, expected",
    [
        (Images(1_281_167, 224), 64, 1, 8),
        (Images(1_281_167, 224), 64, 8, 8),
        (Images(1_281_167, 224), 16, 8, 2),
        (Images(1_281_167, 224), 8, 8, 0),  # one core, and a process that trains on it
        (Images(1_437, 32), 64, 1, 0),  # the embedded digits
        (Images(1_437, 224), 64, 1, 8),
        (
            Images(500, 512, (48, 48)),
            64,
            1,
            0,
        ),  # the embedded scenes: of a crop
        (Images(999), 64, 1, 0),
        (Images(1_000), 64, 1, 8),
        (make_data() * 100, 64, 1, 0),  # tensors in memory
    ],
)
def test_workers_by_default(monkeypatch, rows, cores, processes, expected):
    monkeypatch.setattr("hf_gdkd.training.dataloader_workers.cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_workers(rows) == expected
    monkeypatch.setattr("hf_gdkd.training.dataloader_workers._start_method", lambda: "spawn")
    assert default_workers(rows) == 0


class Many(Dataset):
    """A thousand samples and more, made when they are read."""

    rows = make_data()

    def __len__(self):
        return 1_200

    def __getitem__(self, row):
        return self.rows[row % len(self.rows)]


def test_training_says_what_it_chose(tmp_path, monkeypatch, capsys):
    """Workers that persist in training, and others in evaluation; a number from the user is kept, and not announced."""
    monkeypatch.setattr("hf_gdkd.training.dataloader_workers.cores", lambda: 2)
    args = config(tmp_path, "ce", max_steps=2)
    assert args.dataloader_num_workers is None
    trainer = GDKDTrainer(student(), None, args, train_dataset=Many(), eval_dataset=Many())
    for loader, persists in ((trainer.get_train_dataloader(), True), (trainer.get_eval_dataloader(), False)):
        assert loader.num_workers == 2 and loader.base_dataloader.persistent_workers is persists
    assert args.dataloader_num_workers is None and args.dataloader_persistent_workers is False
    said = "Training data is read by 2 DataLoader workers in each process (2 CPU cores; "
    assert capsys.readouterr().out.startswith(said)
    trainer.train()
    assert all(0 < row["data_wait"] < 1 for row in trainer.state.log_history if "loss" in row)
    distil(tmp_path / "own", student(), **OPTIONS | {"dataloader_num_workers": 0})
    assert capsys.readouterr().out.count("Training data is read") == 1


def test_data_wait_is_the_share_of_the_steps(monkeypatch):
    """3 of 12 seconds, whatever happens between steps."""
    wait, clock = DataWait(), iter([0.0, 1.0, 4.0, 100.0, 102.0, 108.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    for _ in range(2):
        with wait.waiting():
            pass
        wait.on_step_end(None, None, None)
    assert wait.share() == 0.25 and wait.share() == 0.0


def test_the_limit_is_a_number():
    with pytest.raises(InputError, match="dataloader_timeout is -1"):
        config("x", dataloader_timeout=-1)
