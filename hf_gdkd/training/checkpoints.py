"""Whether a checkpoint is complete, and what is said when one cannot be written.

GDKDTrainer writes contents.json into a checkpoint, and Trainer, after it and before it removes older checkpoints,
trainer_state.json. So a run that is killed at any moment has a complete checkpoint as soon as it has had one. The files
are not forced to the disk: a power cut may take the newest, so keep two (`--save_total_limit 2`) where it matters.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from ..errors import TrainingError, first_sentence

CONTENTS = "contents.json"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
PROBE_BYTES = 1 << 24


def write_contents(checkpoint: str | Path) -> None:
    """Note the size of every file of a checkpoint in its contents.json."""
    folder = Path(checkpoint)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != CONTENTS]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    (folder / CONTENTS).write_text(json.dumps(sizes, indent=2), encoding="utf-8")


def _is_saved(checkpoint: str | Path) -> bool:
    """Whether trainer_state.json, which is written last, is complete."""
    try:
        TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
        return True
    except (OSError, ValueError, TypeError):
        return False


def is_complete(checkpoint: str | Path) -> bool:
    """Whether a run can resume from it: trainer_state.json is there, and every file that contents.json names."""
    folder = Path(checkpoint)
    try:
        sizes = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        return _is_saved(folder) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def is_incomplete(checkpoint: str | Path) -> bool:
    """Whether it was not written to its end. What `save_only_model` saves is neither complete nor incomplete."""
    weights_alone = _is_saved(checkpoint) and not Path(checkpoint, CONTENTS).exists()
    return not (weights_alone or is_complete(checkpoint))


def by_step(folder: str | Path) -> dict[int, Path]:
    """The checkpoints in a folder, from the first to the last."""
    found = {int(path.name[11:]): path for path in Path(folder).glob("checkpoint-*") if path.name[11:].isdigit()}
    return dict(sorted(found.items()))


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """The newest complete checkpoint in a run's folder."""
    return next((str(each) for each in reversed(by_step(folder).values()) if is_complete(each)), None)


def unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values with a memory of its own for each name: safetensors saves no memory twice.

    So every name of a weight that two modules share is saved, and the file loads into any model.
    """
    seen: set[tuple[torch.device, int]] = set()
    own = {}
    for name, tensor in state.items():
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        own[name] = tensor.clone(memory_format=torch.contiguous_format) if storage in seen else tensor
        seen.add(storage)
    return own


@contextmanager
def saving(path: str, run: str) -> Iterator[None]:
    """What fails while `path`, of the run in folder `run`, is written becomes one sentence.

    Raises:
        TrainingError: safetensors, torch or the system could not write.
    """
    try:
        yield
    except TrainingError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:  # torch's writer raises RuntimeError
        cause = _cause(error, run)
        reason = f"{cause.strerror or first_sentence(cause)}".rstrip(".") if isinstance(cause, OSError) else cause
        last = last_complete_checkpoint(run)
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            free = shutil.disk_usage(run).free / 1e6
            reason = f"{reason}, with {free:.1f} MB free on its disk"
            remedy = "make room, and go on" if last else "make room, and begin anew"
        else:
            remedy = "when that is solved, go on" if last else "when that is solved, begin anew"
        raise TrainingError(
            f"{path} could not be written: {str(reason).rstrip('.')}. "
            + (f"{last} is complete: {remedy}" if last else f"No checkpoint is complete: {remedy}")
            + " with --resume_from_checkpoint last."
        ) from error


def _cause(error: Exception, folder: str) -> Exception | str:
    """What the system said, where that can be known; otherwise the error's first sentence."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    said = re.search(r"\(os error (\d+)\)", str(error))  # safetensors, written in Rust
    if said is not None:
        return OSError(int(said[1]), os.strerror(int(said[1])))
    if "PytorchStreamWriter" in str(error) or "inline_container" in str(error):  # torch's writer, which knows no reason
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(PROBE_BYTES))
        except OSError as cause:
            return cause
    return first_sentence(error)
