"""The upload of a finished student to the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from ..errors import InputError, PushError
from ..hub_client import HUB_ERRORS, hub_reason, retried

PUSHED = ["*.safetensors", "*.json", "*.yaml", "*.png", "README.md"]


def push(folder: str | Path, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Upload what a user of a finished student needs, and nothing else of its folder; returns the repository's id.

    What may pass is tried again, see `connection.retried`.

    Raises:
        InputError: `repo_id` is no name of a repository.
        PushError: it failed all the same; the folder is as it was, and the sentence names the command that pushes it.
    """
    api = HfApi(token=token)

    def upload() -> str:
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=PUSHED, ignore_patterns=["*/*"],
            commit_message="Upload the student",
        )  # fmt: skip
        return repo

    try:
        return retried(upload)
    except HUB_ERRORS as error:
        reason = hub_reason(error, repo_id, kind="upload") or " ".join(str(error).split())
        if isinstance(error, HFValidationError):
            raise InputError(f"cannot push to {repo_id}: {reason}") from error
        raise PushError(
            f"the student is finished and whole in {folder}, but the push to {repo_id} failed: {reason} "
            f"Push it with: python scripts/push.py {folder} --hub_model_id {repo_id}"
        ) from error
