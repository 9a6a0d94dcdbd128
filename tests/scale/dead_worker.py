"""Two processes, one of whose DataLoader workers is killed: `torchrun --nproc_per_node 2 dead_worker.py folder`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from topology import Student, samples
from torch.utils.data import Dataset, get_worker_info
from transformers import PrinterCallback

from hf_gdkd import GDKDConfig, GDKDTrainer
from hf_gdkd.errors import TrainingError


class Killing(Dataset):
    """In the second process, the row 44 is the end of the worker that reads it."""

    def __init__(self) -> None:
        self.rows, self.fatal = samples(list(range(64))), os.environ["RANK"] == "1"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict:
        if row == 44 and self.fatal and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.rows[row]


def trained(folder: Path, rows, resume: str | None = None) -> torch.Tensor:
    torch.manual_seed(0)
    args = GDKDConfig(
        output_dir=str(folder), loss="ce", num_train_epochs=1, per_device_train_batch_size=4, learning_rate=0.01,
        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        train_sampling_strategy="sequential", dataloader_num_workers=1,
    )  # fmt: skip
    trainer = GDKDTrainer(Student(), None, args, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    rows = samples(list(range(64)))
    whole = trained(folder / "whole", rows)
    try:
        trained(folder / "run", Killing())
    except TrainingError as error:
        print(f"process {os.environ['RANK']}: {error}", flush=True)
        (checkpoint,) = (folder / "run").glob("checkpoint-*")
        assert checkpoint.name in str(error)
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
        assert torch.equal(trained(folder / "run", rows, str(checkpoint)), whole)
        print("goes on exactly", flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
