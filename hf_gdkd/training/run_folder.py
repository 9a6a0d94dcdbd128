"""The folder of a run: one live run at a time, and nothing of another run is deleted without a flag.

Training into a folder that holds a run is refused unless it resumes from that folder or may overwrite it. What has to
go (incomplete checkpoints that a killed run left, or the run to overwrite) goes when training begins, and not before.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from accelerate.utils import gather_object

from ..errors import InputError
from .checkpoints import by_step, is_complete, is_incomplete, last_complete_checkpoint
from .run_files import METRICS_FILE, RUN_FILES

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None

LOCK = ".lock"
LAST = ("last", "true", "True", True)
WEIGHTS = "model*.safetensors"

_held: set[str] = set()  # folders that this process holds


@contextmanager
def in_use(folder: str | Path, *, writes: bool = True) -> Iterator[None]:
    """Hold a folder for this process and those it trains with; another run is refused it meanwhile.

    The lock is a record lock: it belongs to the process and ends with it, however it ends, and the DataLoader workers
    that it forks do not keep it. On a file system without locks there is none.

    Args:
        folder: made where it is not there.
        writes: whether this process writes to it; of several processes, the main one. All must call.

    Raises:
        InputError: another run is training into the folder, or it cannot be written to; on all processes.
    """
    folder = os.path.realpath(folder)
    if folder in _held:
        yield
        return
    file, problem, is_new = None, None, not os.path.isdir(folder)
    try:
        file = _lock(folder) if writes else None
    except InputError as error:
        problem = str(error)
    try:
        for each in gather_object([problem]):
            if each is not None:
                raise InputError(each)
        _held.add(folder)
        yield
    finally:
        _held.discard(folder)
        if file is not None:
            os.remove(file.name)
            file.close()
            if is_new and not os.listdir(folder):
                os.rmdir(folder)


@contextmanager
def writable(folder: str | Path) -> Iterator[None]:
    """A system error of what first writes to a run's folder becomes one sentence.

    Raises:
        InputError: no permission, a read-only file system, a full disk.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"folder {folder} cannot be written to ({error.strerror}): choose another --output_dir."
        ) from error


def _lock(folder: str) -> IO[str] | None:
    path = os.path.join(folder, LOCK)
    while True:
        with writable(folder):
            os.makedirs(folder, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (held)
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise InputError(
                    f"another run is training into {folder} ({file.read()}): choose another --output_dir, or wait "
                    "until it has ended."
                ) from error
        if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            file.truncate(0)
            print(f"process {os.getpid()} on {socket.gethostname()}", end="", file=file, flush=True)
            return file
        file.close()  # whoever held it has just removed it


def checkpoint_to_resume(
    folder: str | Path, resume: str | bool | None = None, *, overwrite: bool = False
) -> str | None:
    """The checkpoint from which a run in this folder goes on; None to begin. Nothing is deleted.

    `resume="last"` (or True) begins where no checkpoint is complete: the same command then serves the first start of a
    job and all restarts, a kill before the first checkpoint included.

    Args:
        folder: the run's.
        resume: a checkpoint, which may be another folder's, or "last" for the folder's last complete one.
        overwrite: whatever else the folder holds may be deleted (`make_way`).

    Raises:
        InputError: the folder holds a run that would have to be deleted; the checkpoint to resume from is incomplete.
    """
    folder = str(folder)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder} is a file: choose another --output_dir.")
    if resume in LAST:
        checkpoint = last_complete_checkpoint(folder)
        if checkpoint is None:
            if not overwrite:
                _check_nothing_to_lose(folder)
            return None
    elif not resume:
        if not overwrite:
            _check_empty(folder)
        return None
    else:
        checkpoint = str(resume)
        if not is_complete(checkpoint):
            raise InputError(
                f"{checkpoint} is not a complete checkpoint: use --resume_from_checkpoint last for the last complete "
                f"one of {folder}, or leave it out."
            )
    if overwrite:
        return checkpoint
    begun = _step_here(folder, checkpoint)
    if begun is None:
        _check_empty(folder)
    later = [other for step, other in by_step(folder).items() if step > (begun or 0) and not is_incomplete(other)]
    if later:
        raise InputError(
            f"resuming from {checkpoint} would replace {later[-1]}: resume from the last checkpoint, choose another "
            "--output_dir, or delete the later ones with --overwrite."
        )
    return checkpoint


def _step_here(folder: str, checkpoint: str | None) -> int | None:
    """The step of a checkpoint of this folder; None: it is another folder's, or there is none."""
    for step, path in by_step(folder).items():
        if checkpoint is not None and os.path.realpath(path) == os.path.realpath(checkpoint):
            return step
    return None


def _check_empty(folder: str) -> None:
    if by_step(folder) or Path(folder, METRICS_FILE).is_file() or any(Path(folder).glob(WEIGHTS)):
        raise InputError(
            f"folder {folder} already holds a run: choose another --output_dir, resume the run with "
            "--resume_from_checkpoint last, or replace it with --overwrite (in Python: train(True), "
            "train(overwrite=True))."
        )


def _check_nothing_to_lose(folder: str) -> None:
    kept = [path for path in by_step(folder).values() if not is_incomplete(path)]
    if kept or Path(folder, METRICS_FILE).is_file():
        what = f"{kept[-1].name}, which has the weights alone," if kept else "a finished run"
        raise InputError(
            f"folder {folder} holds {what} and no checkpoint to resume from: choose another --output_dir, or replace "
            "it with --overwrite."
        )


def make_way(folder: str | Path, checkpoint: str | None, *, overwrite: bool = False) -> None:
    """Delete what a run that begins, or goes on from `checkpoint`, may not find in its folder.

    That is incomplete checkpoints later than its beginning; and, to overwrite, all later checkpoints, with the results
    of the run before where this one begins.
    """
    begun = _step_here(str(folder), checkpoint)
    for step, other in by_step(folder).items():
        if (begun is None or step > begun) and (overwrite or is_incomplete(other)):
            print(f"{other} {'is incomplete' if is_incomplete(other) else 'is overwritten'}: deleted.")
            shutil.rmtree(other)
    if overwrite and begun is None:
        for pattern in (*RUN_FILES, WEIGHTS):
            for path in Path(folder).glob(pattern):
                path.unlink()
