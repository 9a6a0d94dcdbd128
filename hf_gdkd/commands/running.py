"""How a command runs: quietly, and with one sentence and an exit code where something is wrong."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from accelerate import PartialState
from transformers.utils import logging as transformers_logging

from ..errors import InputError, PushError, TrainingError, first_sentence
from ..hub_client import bound_waiting


def quiet() -> None:
    """Our own messages plainly and once, whatever the number of processes; the libraries' only when they are errors."""
    logging.basicConfig(format="%(message)s", level="WARNING" if PartialState().is_main_process else "ERROR")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def run(main: Callable[[], Any]) -> None:
    """Run a script's main; what we know to go wrong ends it with one sentence and the exit code of its exception."""
    bound_waiting()
    try:
        main()
        if dist.is_initialized():
            dist.destroy_process_group()  # left to the interpreter's end, its threads may abort the process
    except (InputError, PushError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {first_sentence(error)} Make room, and give the command again.", file=sys.stderr)
        sys.exit(TrainingError.exit_code)
