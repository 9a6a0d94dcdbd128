"""`--profile`: where the time goes until the end of the first optimizer step."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StartUp(TrainerCallback):
    """Notes when each part of a command is done, and prints a table after the first optimizer step."""

    def __init__(self) -> None:
        self.seconds = {"imports": process_age()}
        self._last = time.perf_counter()

    def done(self, part: str) -> None:
        """Note the time since the part before it was done."""
        now = time.perf_counter()
        self.seconds[part] = now - self._last
        self._last = now

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.done("trainer")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if "first step" not in self.seconds:
            self.done("first step")
            if state.is_world_process_zero:
                print(self.table())

    def table(self) -> str:
        """Seconds of each part, and their sum."""
        rows = self.seconds | {"in all": sum(self.seconds.values())}
        return "\n".join([f"{'start-up':12}{'seconds':>9}", *(f"{part:12}{s:9.2f}" for part, s in rows.items())])


def process_age() -> float:
    """Seconds since this process began."""
    try:  # exact, where psutil knows the start of the machine to a second
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return time.time() - psutil.Process().create_time()
