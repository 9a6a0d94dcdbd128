"""DataLoader workers that die (killed, out of memory) or hang: heard between optimizer steps, when all is whole.

torch raises in a handler of SIGCHLD, so anywhere: also where half of the weights are updated.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import first_sentence

_held: Callable | int | None = None  # torch's handler, while it is held back


class DeadWorker(Exception):
    """What torch says of a worker that died, or that did not answer in time."""


def _silent(*_: object) -> None:
    pass


def _handles_signals() -> bool:
    return hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()


def hold_back() -> None:
    """Keep torch from raising when a worker dies, until `release`."""
    global _held
    if _handles_signals() and signal.getsignal(signal.SIGCHLD) is not _silent:
        _held = signal.signal(signal.SIGCHLD, _silent)


def release() -> None:
    """Let torch raise when a worker dies; at once, if one has died since `hold_back`."""
    if _handles_signals() and signal.getsignal(signal.SIGCHLD) is _silent:
        signal.signal(signal.SIGCHLD, _held)
        if callable(_held):
            _held(signal.SIGCHLD, None)


@contextmanager
def heard() -> Iterator[None]:
    """Inside, a worker that dies is heard, and one that died before.

    Raises:
        DeadWorker: one died or hung; the others, which may follow it, are not heard.
    """
    try:
        release()
        try:
            yield
        except (OSError, EOFError):  # the batch of a worker that is just dying: torch says so in a moment
            time.sleep(1)
            raise
    except RuntimeError as error:
        hold_back()
        if not str(error).startswith("DataLoader "):
            raise
        raise DeadWorker(first_sentence(error)) from error
