"""The optimizer step at which a run was stopped, as files beside the state before it, so that it can be repeated."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainingArguments

from ..errors import InputError

FOLDER, STEP_FILE = "bad_step", "step.json"
RANDOM = "random."  # before the names of random states


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's random number generators of the CPU and of the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(device: torch.device, state: Mapping[str, Tensor]) -> None:
    """Set what `random_state` returned; of another kind of device, the CPU's alone."""
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type])


@dataclass
class BadStep:
    """One optimizer step: its micro-batches, and the random state with which it began.

    Args:
        step: its number, from 1.
        samples: its samples, of all processes.
        steps_per_epoch: for the ramp of the distillation weight.
        found: the summed parts of the loss, and the norm of the gradients.
        batches: this process's micro-batches; `load` returns those of all processes.
        random: this process's random state.
    """

    step: int
    samples: int
    steps_per_epoch: int
    found: Mapping[str, float]
    batches: Sequence[Mapping[str, Any]]
    random: Mapping[str, Tensor]

    def save(self, checkpoint: str | Path, args: TrainingArguments) -> None:
        """Write this process's part into the checkpoint that holds the state before the step; all processes call."""
        folder = Path(checkpoint, FOLDER)
        folder.mkdir(exist_ok=True)
        tensors = {f"{RANDOM}{name}": state for name, state in self.random.items()}
        for i, batch in enumerate(self.batches):
            tensors |= {f"{i}.{name}": value for name, value in batch.items() if isinstance(value, Tensor)}
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
            folder / f"process-{args.process_index}.safetensors",
        )
        if args.should_save:
            numbers = {name: value if math.isfinite(value) else str(value) for name, value in self.found.items()}
            step = {"step": self.step, "samples": self.samples, "steps_per_epoch": self.steps_per_epoch}
            (folder / STEP_FILE).write_text(json.dumps(step | {"found": numbers}, indent=2), encoding="utf-8")
        PartialState().wait_for_everyone()

    @classmethod
    def load(cls, checkpoint: str | Path) -> list[BadStep]:
        """What each process saved.

        Raises:
            InputError: the folder is not a checkpoint of a run that was stopped.
        """
        folder = Path(checkpoint, FOLDER)
        if not (folder / STEP_FILE).is_file():
            raise InputError(
                f"{checkpoint} holds no step to repeat: choose the checkpoint that the run named when it was stopped."
            )
        step = json.loads((folder / STEP_FILE).read_text(encoding="utf-8"))
        step["found"] = {name: float(value) for name, value in step["found"].items()}
        parts = []
        for path in sorted(folder.glob("process-*.safetensors"), key=lambda path: int(path.stem.split("-")[1])):
            batches: dict[int, dict[str, Tensor]] = {}
            random = {}
            for name, value in load_file(path).items():
                if name.startswith(RANDOM):
                    random[name.removeprefix(RANDOM)] = value
                else:
                    number, key = name.split(".", 1)
                    batches.setdefault(int(number), {})[key] = value
            parts.append(cls(**step, batches=[batches[i] for i in sorted(batches)], random=random))
        return parts
