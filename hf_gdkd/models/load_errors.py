"""Why a model cannot be loaded, and what to do: one sentence for what transformers, timm and the Hub raise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, file_exists
from huggingface_hub.errors import OfflineModeIsEnabled, StrictDataclassError
from safetensors import SafetensorError

from ..errors import InputError, first_sentence
from ..hub_client import HUB_ERRORS, hub_reason


@contextmanager
def explained(what: str, path: str, revision: str | None = None) -> Iterator[None]:
    """Turn every error into an InputError: `what`, and the reason.

    Every one, as a model, a configuration or an image processor raises nearly anything when a file that came from
    elsewhere has a value that it did not expect.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {reason(error, path, revision)}") from error


def reason(error: Exception, path: str, revision: str | None = None) -> str:
    """Why a model cannot be loaded, and what to do, in one sentence."""
    if "trust_remote_code" in str(error):
        return "it runs its own code: read that code, then use --trust_remote_code, or choose another model."
    if (found := hub_reason(error, path, revision=revision)) is not None:
        absent = found.startswith(("the Hub has no repository", "HF_HUB_OFFLINE"))  # it may be meant for a folder
        return f"there is no folder of that name, and {found}" if absent and not os.path.isdir(path) else found
    if "Can't load image processor" in str(error):
        if constants.is_offline_mode() and not os.path.isdir(path):
            return reason(OfflineModeIsEnabled(), path)
        return "it has no image processor: choose a model with a preprocessor_config.json."
    if "Unrecognized image processor in" in str(error):
        return "transformers does not know the image processor in its preprocessor_config.json: correct that file."
    if "model.safetensors" in str(error):
        if not os.path.isdir(path):  # transformers says so too of a file that did not come
            try:
                file_exists(path, "model.safetensors", revision=revision)
            except HUB_ERRORS as refusal:
                return reason(refusal, path, revision)
        return (
            "it has no model.safetensors, and pickled weights (pytorch_model.bin) are not read, as they can run code: "
            "convert them with save_pretrained, or choose another model (a student also takes --student_init random)."
        )
    if "Unrecognized model in" in str(error) or "does not recognize this architecture" in str(error):
        return "transformers does not know the `model_type` in its config.json: update transformers, or choose another."
    if isinstance(error, SafetensorError):
        return f"its weights cannot be read ({first_sentence(error).rstrip('.')}): save or download them again."
    if isinstance(error, (OSError, RuntimeError, ImportError)):
        return first_sentence(error)
    # StrictDataclassError says where in its first line, and why in its second.
    said = " ".join(str(error).split()) if isinstance(error, StrictDataclassError) else first_sentence(error)
    said = f"{type(error).__name__}: {said.rstrip('.')}"
    return f"its config.json or preprocessor_config.json has a value that is not accepted ({said}): correct that file."
