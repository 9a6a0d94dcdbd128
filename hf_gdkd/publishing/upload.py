"""The upload of a finished student to the Hub."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError

from ..errors import InputError, PushError
from ..hub_client import HUB_ERRORS, hub_reason, retried
from ..training.run_files import METRICS_FILE, SETTINGS_FILE
from .reports import FOLDER, card_section, report_as_pushed, report_of

PUSHED = ["*.safetensors", "*.json", "*.yaml", "*.png", "README.md"]
WITH_NAMES = (SETTINGS_FILE, METRICS_FILE, "evaluation.json")  # these may name local folders


def push(folder: str | Path, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Upload what a user of a finished student needs from its folder, and nothing else; returns the repository's id.

    The card then says how to load the model from the Hub, and of local folders only the last part of their names is
    uploaded. A report on the student in the folder `report` goes with it, and the card shows its figures. Transient
    errors are retried, see `hub_client.retried`.

    Raises:
        InputError: `repo_id` is not a valid name of a repository.
        PushError: the upload failed. The folder is unchanged, and the sentence names the command that pushes it.
    """
    api, report = HfApi(token=token), report_of(folder)
    beside = {} if report is None else report_as_pushed(report)

    def upload() -> str:
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        paths = [path for pattern in PUSHED for path in sorted(Path(folder).glob(pattern)) if path.is_file()]
        files = {path.name: _as_pushed(path, repo, report) for path in paths}
        files |= {f"{FOLDER}/{name}": content for name, content in beside.items()}
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repo, operations, commit_message="Upload the student")
        return repo

    try:
        return retried(upload)
    except HUB_ERRORS as error:
        reason = hub_reason(error, repo_id, kind="upload", token=token) or " ".join(str(error).split())
        if isinstance(error, HFValidationError):
            raise InputError(f"cannot push to {repo_id}: {reason}") from error
        raise PushError(
            f"the student is complete in {folder}, but the push to {repo_id} failed: {reason} "
            f"Push it with: hf-gdkd push {folder} --hub_model_id {repo_id}"
        ) from error


def _as_pushed(path: Path, repo: str, report: Path | None) -> str | bytes:
    """A file as others may read it: its path, or its content where that differs."""
    if path.name == "README.md":
        return _card(path.read_text(encoding="utf-8"), repo, report).encode()
    if path.name not in WITH_NAMES:
        return str(path)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    shared = _without_folders(content)
    if shared == content:
        return str(path)
    if path.suffix == ".json":
        return (json.dumps(shared, indent=2) + "\n").encode()
    changed = ", ".join(key for key in content if key not in shared or shared[key] != content[key])
    note = f"# Local files or folders of the author, named by the last part of their paths only: {changed}.\n"
    return (note + yaml.safe_dump(shared, sort_keys=False)).encode()


def _card(text: str, repo: str, report: Path | None = None) -> str:
    """The card with the commands for a model that is on the Hub, and with the figures of the report on it."""
    text = re.sub(r'(?<=pipeline\()("[a-z-]+", ")[^"]*', lambda found: found[1] + repo, text)
    text = re.sub(rf"(?m)^ +hf download \S+ {SETTINGS_FILE} .*\n", "", text)
    download = f"    hf download {repo} {SETTINGS_FILE} --local-dir .\n"
    text = re.sub(rf"(?m)^(?= +hf-gdkd distill --config {SETTINGS_FILE})", lambda _: download, text)
    if report is None:
        return text
    before, heading, after = text.partition("\n## Loss\n")
    return f"{before.rstrip()}\n\n{card_section(report)}{heading}{after}"


def _without_folders(value: Any) -> Any:
    """A value in which every path of a local file or folder is its last part."""
    if isinstance(value, dict):
        return {_without_folders(key): _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    if isinstance(value, str) and os.sep in value:
        path = Path(value).expanduser()
        return path.name if path.is_absolute() or path.exists() else value
    return value
