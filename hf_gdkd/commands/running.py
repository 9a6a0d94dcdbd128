"""How a command runs: quietly, and ending with one sentence and an exit code when something is wrong."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
from accelerate import PartialState
from transformers.utils import logging as transformers_logging

from ..errors import InputError, PushError, TrainingError, first_sentence
from ..hub_client import bound_waiting
from .output import ends_with_its_reader


def quiet() -> None:
    """Print our own messages once, whatever the number of processes, and the libraries' only when they are errors."""
    logging.basicConfig(format="%(message)s", level="WARNING" if PartialState().is_main_process else "ERROR")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def run(main: Callable[[], Any]) -> None:
    """Run a command's main; an error of ours ends it with one sentence and the error's exit code."""
    bound_waiting()
    try:
        with ends_with_its_reader():
            main()
        _leave(0)
    except (InputError, PushError, TrainingError) as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename is not None:
            _end(f"{error.filename}: {error.strerror}. Choose another path.", InputError.exit_code)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _end(f"{first_sentence(error)} Free some space, and run the command again.", TrainingError.exit_code)


def _end(sentence: str, code: int) -> NoReturn:
    if _first_to_end():
        print(f"error: {sentence}", file=sys.stderr)
    _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """End a process of several at once: at the interpreter's own end, threads of gloo may still abort it."""
    if dist.is_initialized():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _first_to_end() -> bool:
    """Whether no other process of this run on this machine has ended with a sentence.

    torch's launcher names a file in a folder for each process, beside those of the others.
    """
    if (own := os.environ.get("TORCHELASTIC_ERROR_FILE")) is None:
        return True
    try:
        Path(own).parents[1].joinpath("ended").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True  # the folder is not there: say it twice rather than never
    return True
