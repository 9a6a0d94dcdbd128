"""A user's own loss on the command line: `--loss_file my_loss.py --loss my_loss`."""

from __future__ import annotations

import importlib.util
import os
import sys

from ..errors import InputError, first_sentence
from ..losses import LOSSES


def run_loss_file(path: str) -> None:
    """Run a Python file that calls `register_loss`, once a process.

    Only a flag may name the file, never a file of settings: whoever types it decides what code runs.

    Raises:
        InputError: the file is missing, fails, or registers no loss.
    """
    name = f"loss_file:{os.path.abspath(path)}"
    if name in sys.modules:
        return
    if not (os.path.isfile(path) and path.endswith(".py")):
        raise InputError(f"loss_file {path} is not a Python file: name a .py file that calls register_loss.")
    spec = importlib.util.spec_from_file_location(name, path)
    before, sys.modules[name] = len(LOSSES), importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[name])
        if len(LOSSES) == before:
            raise InputError(f"loss_file {path} registers no loss: call register_loss(name, cls) in it.")
    except Exception as error:
        del sys.modules[name]
        if isinstance(error, InputError):
            raise
        raise InputError(f"loss_file {path} fails: {type(error).__name__}: {first_sentence(error)}") from error
