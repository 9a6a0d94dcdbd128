"""One process per GPU: `hf-gdkd distill` starts itself through Accelerate's launcher."""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

import torch

from ..errors import InputError, PushError, TrainingError

# What a launcher sets in the processes that it starts (torchrun, accelerate, MPI, Slurm's PMI).
LAUNCHED = ("WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
OUR_CODES = (InputError.exit_code, PushError.exit_code, TrainingError.exit_code)


def processes_to_start(argv: Sequence[str]) -> tuple[int, list[str]]:
    """How many processes a run takes, and its arguments without `--num_processes`.

    1 means this process: it was itself launched, there is at most one GPU, or it trains on the CPU. GPUs are counted
    without initialising CUDA.

    Raises:
        InputError: a number of processes that this machine cannot start, or a settings file that cannot be read.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", "--num-processes")
    parser.add_argument("--use_cpu", "--use-cpu", nargs="?", const="true")
    parser.add_argument("--config")
    known, _ = parser.parse_known_args(list(argv))
    rest = _without_num_processes(argv)
    on_cpu = known.use_cpu
    if on_cpu is None and known.config is not None:
        from .arguments.settings_file import read_settings  # which takes seconds to import

        on_cpu = read_settings(known.config).get("use_cpu")
    on_cpu = str(on_cpu).lower() in ("true", "1", "yes", "y", "t")
    gpus = 0 if on_cpu else torch.cuda.device_count()
    if known.num_processes is None:
        launched = any(name in os.environ for name in LAUNCHED)
        return (1 if launched else max(gpus, 1)), rest
    wanted = int(known.num_processes) if known.num_processes.isdecimal() else 0
    if wanted < 1:
        raise InputError(f"num_processes is {known.num_processes}: use a whole number of at least 1.")
    if any(name in os.environ for name in LAUNCHED):
        raise InputError("a launcher has started this process already: leave --num_processes out.")
    if not on_cpu and wanted > max(gpus, 1):
        raise InputError(
            f"num_processes is {wanted} and this machine has {gpus} GPUs: use one process per GPU, or --use_cpu."
        )
    if wanted == 1 and gpus > 1:  # Trainer would use them all
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return wanted, rest


def _without_num_processes(argv: Sequence[str]) -> list[str]:
    rest, words = [], iter(argv)
    for word in words:
        name, _, value = word.partition("=")
        if name not in ("--num_processes", "--num-processes"):
            rest.append(word)
        elif not value:
            next(words, None)
    return rest


def launch(argv: Sequence[str], processes: int) -> None:
    """Run distill in this many processes, and exit with the code of the one that failed, if any.

    The process says itself what was wrong; torch's report on top is switched off.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    words = ["--multi_gpu", f"--num_processes={processes}", "--num_machines=1", "--main_process_port=0"]
    words += ["--mixed_precision=no", "--dynamo_backend=no"]  # as the flags of the run say
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args([*words, "--module", "hf_gdkd.scripts.distill", *argv]))
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        code = next((code for code in codes if code in OUR_CODES), error.get_first_failure()[1].exitcode)
        if code < 0:
            print(f"error: a process of the run was killed by signal {-code}.", file=sys.stderr)
            code = 128 - code
        sys.exit(code)
    except SignalException as error:
        sys.exit(128 + error.sigval)
