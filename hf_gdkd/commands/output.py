"""What happens when nobody reads a command's output any more, as in `hf-gdkd losses | head -1`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CLOSED = 128 + getattr(signal, "SIGPIPE", 13)  # the exit code of other commands, which the signal ends


@contextmanager
def ends_with_its_reader() -> Iterator[None]:
    """Inside, an output that nobody reads any more ends the command at once, without a traceback."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        try:
            print(flush=True)  # raises again if it was this pipe that broke
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own flush
            sys.exit(CLOSED)
        raise
